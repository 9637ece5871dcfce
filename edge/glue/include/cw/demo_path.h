/*
 * Where the demo models that ship with the project are: what `causeway` uses when no model is named.
 */
#pragma once
#include "cw/status.h"

#define CW_DEMO_MODEL    "causeway-demo-teacher.gguf"
#define CW_DEMO_FALLBACK "causeway-demo-student.gguf"
#define CW_DEMO_HEAD     "causeway-demo-teacher-mtp.gguf"

/* Path of a file of the demo set: $CAUSEWAY_DEMO, beside the executable's share directory, or the source tree
 * it was built from. Caller frees with cw_free. NOT_FOUND names the places. */
CW_MUST_USE cw_status cw_demo_path(const char *file, char **out, cw_err *err);
