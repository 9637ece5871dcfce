/*
 * Files the way the roles need them: bounded reads, writes that are whole or not there, private directories,
 * locks that name their holder. Blocking; any thread.
 */
#pragma once
#include "cw/status.h"

/* Whole file of at most `limit` bytes, with a NUL after it that is not counted; caller frees with cw_free. */
CW_MUST_USE cw_status cw_fs_read(const char *path, size_t limit, char **data, size_t *bytes, cw_err *err);
/* Standard input to its end, same rules. */
CW_MUST_USE cw_status cw_fs_read_stdin(size_t limit, char **data, size_t *bytes, cw_err *err);
/* A value that may be indirect: "@file" and "-" (standard input) are read and lose trailing white space; else
 * a copy. */
CW_MUST_USE cw_status cw_fs_read_arg(const char *arg, size_t limit, char **text, cw_err *err);

/* Temporary file beside `path`, fsync, rename, fsync of the directory: readers see the old or the new, never
 * a part. */
CW_MUST_USE cw_status cw_fs_write(const char *path, const void *data, size_t bytes, unsigned mode,
                                  cw_err *err);

/* Makes the directory and its parents, mode 0700; one that exists must be ours and closed to others. */
CW_MUST_USE cw_status cw_fs_private_dir(const char *path, cw_err *err);

/* Advisory lock on a file, held until unlocked or the process ends. BUSY names the holder's process id. */
typedef struct cw_lock cw_lock;
CW_MUST_USE cw_status cw_fs_lock(const char *path, cw_lock **out, cw_err *err);
void cw_fs_unlock(cw_lock **l);

/* Where a program keeps its state: $XDG_STATE_HOME/causeway or ~/.local/state/causeway, then "/NAME" if
 * given. Heap. */
CW_MUST_USE cw_status cw_fs_state_dir(const char *name, char **out, cw_err *err);
/* "a/b" from "a" and "b"; heap, NULL when memory is out. */
CW_MUST_USE char *cw_fs_join(const char *dir, const char *name);
bool cw_fs_is_file(const char *path);
/* Directory of the running executable; heap. */
CW_MUST_USE cw_status cw_fs_exe_dir(char **out, cw_err *err);
