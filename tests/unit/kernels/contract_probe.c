/* Compiled several times with different instruction sets; PROBE names the copy. */
#define JOIN_(a, b) a##b
#define JOIN(a, b)  JOIN_(a, b)

float JOIN(contract_scalar_, PROBE)(float a, float b, float c);
void JOIN(contract_loop_, PROBE)(float *restrict y, const float *restrict a, const float *restrict b, int n);

float JOIN(contract_scalar_, PROBE)(float a, float b, float c)
{
    return a * b + c;
}

/* A loop the compiler may vectorise. */
void JOIN(contract_loop_, PROBE)(float *restrict y, const float *restrict a, const float *restrict b, int n)
{
    for (int i = 0; i < n; i++) y[i] = a[i] * b[i] + y[i];
}
