/* See blas.h. */
#include "blas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* The interface of cblas.h with 32-bit integers, which libopenblas.so.0 has. */
enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };
typedef void (*sgemm_fn)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                         const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);

static struct {
    pthread_once_t once;
    sgemm_fn sgemm;
    char why[256];
} blas = {.once = PTHREAD_ONCE_INIT};

static void load(void)
{
    /* Read by the library when it is loaded: later it would have started its threads already. */
    setenv("OPENBLAS_NUM_THREADS", "1", 0);
    void *lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL); /* never closed: it may own threads */
    if (!lib) {
        const char *why = dlerror();
        snprintf(blas.why, sizeof blas.why, "%s", why ? why : "libopenblas.so.0 cannot be loaded");
        return;
    }
    void (*set_threads)(int) = NULL;
    *(void **)&set_threads = dlsym(lib, "openblas_set_num_threads");
    *(void **)&blas.sgemm = dlsym(lib, "cblas_sgemm");
    if (!set_threads || !blas.sgemm) {
        blas.sgemm = NULL;
        snprintf(blas.why, sizeof blas.why, "libopenblas.so.0 lacks cblas_sgemm");
        return;
    }
    set_threads(1);
}

cw_status cw_blas_load(cw_err *err)
{
    pthread_once(&blas.once, load);
    if (blas.sgemm) return CW_OK;
    return CW_FAIL(err, CW_STATUS_UNSUPPORTED, "--prefill expanded needs OpenBLAS (package libopenblas0): %s",
                   blas.why);
}

void cw_blas_gemm(bool b_rows, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                  int ldb, float beta, float *c, int ldc)
{
    CW_ASSERT(blas.sgemm);
    blas.sgemm(ROW_MAJOR, NO_TRANS, b_rows ? TRANS : NO_TRANS, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
