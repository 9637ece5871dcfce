/* The scalar matrix product, which the scalar table uses and vector tables fall back to for types they lack.
 */
#pragma once
#include "internal.h"

void cw_ref_matmul(const cw_mm *mm, int64_t panel0, int64_t panel1, int32_t row0, int32_t row1);
