/*
 * The order matters: an installed program must not fall back to a source tree that may be gone or newer, and
 * a program in a build directory must not pick up an older installed set.
 */
#include "cw/demo_path.h"
#include "cw/fs.h"
#include "cw/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* dir/file when it is there. */
static char *probe(const char *dir, const char *file)
{
    char *p = cw_fs_join(dir, file);
    if (p && cw_fs_is_file(p)) return p;
    cw_free(p);
    return NULL;
}

/* PREFIX/bin/causeway finds PREFIX/share/causeway/demo. */
static char *beside_executable(const char *file)
{
    char *dir = NULL, *found = NULL;
    if (cw_fs_exe_dir(&dir, NULL) != CW_OK) return NULL;
    char *slash = strrchr(dir, '/');
    if (slash && strcmp(slash, "/bin") == 0) {
        *slash = 0;
        char *share = cw_fs_join(dir, CW_DEMO_INSTALLED);
        if (share) found = probe(share, file);
        cw_free(share);
    }
    cw_free(dir);
    return found;
}

cw_status cw_demo_path(const char *file, char **out, cw_err *err)
{
    const char *env = getenv("CAUSEWAY_DEMO");
    char *p = env && *env ? probe(env, file) : NULL;
    if (!p) p = beside_executable(file);
    if (!p) p = probe(CW_DEMO_SOURCE_DIR, file);
    if (!p)
        return CW_FAIL(
            err, CW_STATUS_NOT_FOUND,
            "the demo model %s is neither in %s beside the program nor in %s; name a model with -m", file,
            CW_DEMO_INSTALLED, CW_DEMO_SOURCE_DIR);
    *out = p;
    return CW_OK;
}
