/* Files. Every path in an error is the caller's own, so the sentence names what the user typed. */
#include "cw/fs.h"
#include "cw/mem.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static cw_status fail_errno(cw_err *err, const char *verb, const char *path)
{
    return CW_FAIL(err, errno == ENOENT ? CW_STATUS_NOT_FOUND : CW_STATUS_IO, "cannot %s %s: %s", verb, path,
                   strerror(errno));
}

static cw_status read_fd(int fd, const char *name, size_t limit, char **data, size_t *bytes, cw_err *err)
{
    size_t cap = 4096, len = 0;
    char *buf = cw_calloc(cap + 1, 1);
    cw_status s = CW_OK;
    while (buf) {
        ssize_t n = read(fd, buf + len, cap - len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            s = fail_errno(err, "read", name);
            break;
        }
        len += (size_t)n;
        if (len > limit) {
            s = CW_FAIL(err, CW_STATUS_LIMIT, "%s is larger than the %zu bytes allowed", name, limit);
            break;
        }
        if (n == 0) {
            buf[len] = 0;
            *data = buf;
            *bytes = len;
            return CW_OK;
        }
        if (len < cap) continue;
        char *more = cap > SIZE_MAX / 2 - 1 ? NULL : cw_realloc(buf, cap * 2 + 1, 1);
        if (!more) break;
        buf = more;
        cap *= 2;
    }
    cw_free(buf);
    return s != CW_OK ? s : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory reading %s", name);
}

cw_status cw_fs_read(const char *path, size_t limit, char **data, size_t *bytes, cw_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_errno(err, "open", path);
    cw_status s = read_fd(fd, path, limit, data, bytes, err);
    close(fd);
    return s;
}

cw_status cw_fs_read_stdin(size_t limit, char **data, size_t *bytes, cw_err *err)
{
    return read_fd(STDIN_FILENO, "standard input", limit, data, bytes, err);
}

cw_status cw_fs_read_arg(const char *arg, size_t limit, char **text, cw_err *err)
{
    size_t n;
    if (strcmp(arg, "-") == 0) {
        CW_TRY(cw_fs_read_stdin(limit, text, &n, err));
    } else if (arg[0] == '@') {
        CW_TRY(cw_fs_read(arg + 1, limit, text, &n, err));
    } else {
        n = strlen(arg);
        if (n > limit)
            return CW_FAIL(err, CW_STATUS_LIMIT, "the value is longer than the %zu bytes allowed", limit);
        *text = cw_strdup(arg);
        return *text ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    }
    while (n && isspace((unsigned char)(*text)[n - 1])) (*text)[--n] = 0;
    return CW_OK;
}

static int write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR) continue;
        if (w < 0) return -1;
        p += w;
        n -= (size_t)w;
    }
    return 0;
}

/* The rename is durable only once the directory is. */
static int sync_parent(const char *path)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (slash == path ? 1 : (size_t)(slash - path)) : 0;
    if (n >= sizeof dir) return 0;
    if (n)
        memcpy(dir, path, n), dir[n] = 0;
    else
        strcpy(dir, ".");
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    int r = fsync(fd);
    close(fd);
    return r;
}

cw_status cw_fs_write(const char *path, const void *data, size_t bytes, unsigned mode, cw_err *err)
{
    char tmp[PATH_MAX];
    if (snprintf(tmp, sizeof tmp, "%s.XXXXXX", path) >= (int)sizeof tmp)
        return CW_FAIL(err, CW_STATUS_LIMIT, "the path %.60s... is too long", path);
    int fd = mkostemp(tmp, O_CLOEXEC);
    if (fd < 0) return fail_errno(err, "write", path);
    bool ok = fchmod(fd, (mode_t)mode) == 0 && write_all(fd, data, bytes) == 0 && fsync(fd) == 0;
    int saved = errno;
    if (close(fd) != 0 && ok) ok = false, saved = errno;
    if (ok && rename(tmp, path) != 0) ok = false, saved = errno;
    if (!ok) {
        unlink(tmp);
        errno = saved;
        return fail_errno(err, "write", path);
    }
    return sync_parent(path) == 0 ? CW_OK : fail_errno(err, "sync the directory of", path);
}

cw_status cw_fs_private_dir(const char *path, cw_err *err)
{
    char part[PATH_MAX];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof part)
        return CW_FAIL(err, CW_STATUS_INVALID, "'%.60s' is no directory name", path);
    memcpy(part, path, n + 1);
    for (char *c = part + 1; *c; c++)
        if (*c == '/') {
            *c = 0;
            if (mkdir(part, 0700) != 0 && errno != EEXIST) return fail_errno(err, "make directory", part);
            *c = '/';
        }
    if (mkdir(part, 0700) == 0) return CW_OK;
    if (errno != EEXIST) return fail_errno(err, "make directory", path);
    struct stat st;
    if (stat(path, &st) != 0) return fail_errno(err, "look at", path);
    if (!S_ISDIR(st.st_mode))
        return CW_FAIL(err, CW_STATUS_IO, "%s is there already and is not a directory", path);
    if (st.st_uid != geteuid()) return CW_FAIL(err, CW_STATUS_AUTH, "%s belongs to another user", path);
    if (st.st_mode & 077)
        return CW_FAIL(err, CW_STATUS_AUTH, "%s holds keys but is open to other users; run: chmod 700 %s",
                       path, path);
    return CW_OK;
}

struct cw_lock {
    int fd;
};

cw_status cw_fs_lock(const char *path, cw_lock **out, cw_err *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return fail_errno(err, "open lock file", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int why = errno;
        char who[24] = "";
        ssize_t n = pread(fd, who, sizeof who - 1, 0);
        close(fd);
        if (why != EWOULDBLOCK) {
            errno = why;
            return fail_errno(err, "lock", path);
        }
        who[n > 0 ? strcspn(who, "\n") : 0] = 0;
        return CW_FAIL(err, CW_STATUS_BUSY, "%s is held by another process%s%s", path, *who ? ", " : "", who);
    }
    cw_lock *l = cw_calloc(1, sizeof *l);
    char pid[24];
    int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (!l || ftruncate(fd, 0) != 0 || pwrite(fd, pid, (size_t)n, 0) != n) {
        cw_free(l);
        close(fd);
        return CW_FAIL(err, CW_STATUS_IO, "cannot write the lock file %s", path);
    }
    l->fd = fd;
    *out = l;
    return CW_OK;
}

void cw_fs_unlock(cw_lock **l)
{
    if (!l || !*l) return;
    close((*l)->fd); /* the file stays: removing it would race with the next holder */
    cw_free(*l);
    *l = NULL;
}

char *cw_fs_join(const char *dir, const char *name)
{
    size_t n = strlen(dir), m = strlen(name);
    char *p = cw_calloc(n + m + 2, 1);
    if (!p) return NULL;
    memcpy(p, dir, n);
    if (n == 0 || dir[n - 1] != '/') p[n++] = '/';
    memcpy(p + n, name, m + 1);
    return p;
}

cw_status cw_fs_state_dir(const char *name, char **out, cw_err *err)
{
    const char *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *base = NULL;
    if (xdg && xdg[0] == '/')
        base = cw_fs_join(xdg, "causeway");
    else if (home && home[0] == '/')
        base = cw_fs_join(home, ".local/state/causeway");
    else
        return CW_FAIL(err, CW_STATUS_NOT_FOUND,
                       "neither XDG_STATE_HOME nor HOME is set; name a directory with --state");
    if (base && name && *name) {
        char *sub = cw_fs_join(base, name);
        cw_free(base);
        base = sub;
    }
    if (!base) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
    *out = base;
    return CW_OK;
}

bool cw_fs_is_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

cw_status cw_fs_exe_dir(char **out, cw_err *err)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0) return fail_errno(err, "read", "/proc/self/exe");
    path[n] = 0;
    char *slash = strrchr(path, '/');
    if (slash) *slash = 0;
    *out = cw_strdup(path);
    return *out ? CW_OK : CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory");
}
