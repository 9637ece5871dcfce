/*
 * Which CPUs this process uses. Bound to a list, it stays on them, and so do its threads where that helps: a
 * compute pool with a thread for each keeps one on each, and what hands messages on stays where its user is.
 * Two processes that share a machine then never stand in one another's way on one core while another idles.
 */
#pragma once
#include <pthread.h>

#include "cw/status.h"

/* "0-3,8": for the whole process, once, before it starts threads. INVALID: no such list, no such CPU, or not
 * ours to use. */
CW_MUST_USE cw_status cw_cpus_bind(const char *list, cw_err *err);
/* Whether it was. */
bool cw_cpus_bound(void);

/* CPUs of the process: those it is bound to, else those that the calling thread may use; at least 1. */
int cw_cpus_count(void);
/* The number of the i-th of them, 0 <= i < count. */
int cw_cpus_get(int i);

/* Whether that many threads get one CPU each: the process is bound to as many. */
bool cw_cpus_one_each(int n_threads);
/* The thread stays on the i-th of them; where the system refuses, it is slower and nothing else. */
void cw_cpus_keep(pthread_t thread, int i);
