/* The stories; script.c says what the words mean. */
#include "cw/mem.h"
#include "script.h"

#define STEPS(...) ((const char *const[]){__VA_ARGS__, NULL})

const script scripts[] = {
    {"a cluster begins and answers", 2, 2, 100, STEPS("ready", "ask e0 6", "ask e1 6")},
    {"a connection to a worker is cut", 2, 1, 100,
     STEPS("ready", "ask e0 6", "cut edges w0", "ready", "ask e0 6")},
    {"a worker dies and another has its experts", 2, 1, 100,
     STEPS("ready", "ask e0 6", "kill w0", "ask e0 6", "gone w0", "start w0", "ready", "ask e0 6")},
    {"the only home of experts dies and comes back", 2, 1, 60,
     STEPS("ready", "ask e0 6", "kill w1", "gone w1", "start w1", "ready", "ask e0 6")},
    {"a worker is told to stop and leaves in order", 2, 1, 100,
     STEPS("ready", "ask e0 6", "stop w1", "ask e0 6", "start w1", "ready", "ask e0 6")},
    {"the coordinator dies and comes back to what it left", 2, 1, 100,
     STEPS("ready", "ask e0 6", "kill c", "ask e0 6", "start c", "ready", "ask e0 6")},
    {"workers lose the coordinator for a moment", 2, 1, 100,
     STEPS("ready", "cut workers c", "ready", "ask e0 6")},
    {"a path loses packets for a moment", 2, 1, 100,
     STEPS("ready", "ask e0 3", "hole from w0 200", "ask e0 6")},
    {"a worker stands still for a moment", 2, 1, 100, STEPS("ready", "ask e0 3", "pause w0 300", "ask e0 6")},
    {"a worker joins", 2, 1, 100, STEPS("ready", "ask e0 6", "start w2", "ready", "ask e0 6")},
    {"a worker is drained and takes part again", 3, 1, 100,
     STEPS("ready", "drain w1", "empty w1", "ask e0 6", "undrain w1", "ready", "ask e0 6")},
    {"an edge is revoked", 2, 2, 100, STEPS("ready", "ask e1 3", "revoke e1", "ask e0 6")},
};
const size_t n_scripts = CW_ARRAY_LEN(scripts);
