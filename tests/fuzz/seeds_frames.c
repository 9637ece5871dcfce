/* Starting inputs for fuzz_frames: one message of every kind that has fields worth damaging, and good calls
 * and replies. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cw/bytes.h"
#include "cw/msg.h"

enum { D = 64, ROWS = 2, ENTRIES = 3 };

static const char *dir;
static uint8_t bytes32[32];

static void save(const char *name, const uint8_t choices[4], const Cw__Pb__Envelope *env,
                 const cw_frame *frames, uint8_t n)
{
    char path[512];
    uint8_t header[4096], len[2];
    size_t header_len = cw_msg_header_bytes(env);
    CW_ASSERT(header_len <= sizeof header);
    cw_msg_header_pack(env, header);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    CW_ASSERT(f && fwrite(choices, 1, 4, f) == 4 && fwrite(&n, 1, 1, f) == 1);
    for (uint8_t i = 0; i < n; i++) {
        cw_store_u16(len, (uint16_t)frames[i].len);
        CW_ASSERT(fwrite(len, 1, 2, f) == 2);
    }
    for (uint8_t i = 0; i < n; i++) CW_ASSERT(fwrite(frames[i].data, 1, frames[i].len, f) == frames[i].len);
    CW_ASSERT(fwrite(header, 1, header_len, f) == header_len && fclose(f) == 0);
}

static void calls_and_replies(void)
{
    static const cw_entry e[ENTRIES] = {{0, 1, 0.5f}, {1, 1, 0.25f}, {1, 3, 1.0f}};
    static uint8_t entries[ENTRIES * CW_ENTRY_BYTES], q[ROWS * D], s[ROWS * D / 8], x[ROWS * D * 4],
        f16[ENTRIES * D * 2], exps[ENTRIES];
    Cw__Pb__Call call = CW__PB__CALL__INIT;
    Cw__Pb__Reply reply = CW__PB__REPLY__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    for (uint32_t i = 0; i < ENTRIES; i++) cw_entry_put(entries, i, e[i]);
    for (int i = 0; i < ROWS * D; i++) q[i] = (uint8_t)i;
    call.id = 1, call.layer = 2, call.n_rows = ROWS, call.n_entries = ENTRIES, call.budget_us = 1000;
    env.body_case = CW__PB__ENVELOPE__BODY_CALL, env.call = &call;
    cw_frame a8[] = {
        {.data = entries, .len = sizeof entries}, {.data = q, .len = sizeof q}, {.data = s, .len = sizeof s}};
    save("call_a8", (uint8_t[]){1, 0, 0, 65}, &env, a8, 3);
    call.act = CW__PB__ACT_KIND__ACT_F32, call.reply = CW__PB__REPLY_KIND__COMBINED_F32;
    cw_frame f32[] = {{.data = entries, .len = sizeof entries}, {.data = x, .len = sizeof x}};
    save("call_f32", (uint8_t[]){1, 0, 0, 65}, &env, f32, 2);
    reply.id = 1, reply.n = ENTRIES;
    env.body_case = CW__PB__ENVELOPE__BODY_REPLY, env.reply = &reply;
    cw_frame rows16[] = {{.data = f16, .len = sizeof f16}, {.data = exps, .len = sizeof exps}};
    save("reply_f16", (uint8_t[]){1, 0, ENTRIES, 64}, &env, rows16, 2);
    reply.kind = CW__PB__REPLY_KIND__COMBINED_F32, reply.n = ROWS;
    save("reply_combined", (uint8_t[]){1, 2, ROWS, 64}, &env, &f32[1], 1);
}

static void introductions(void)
{
    Cw__Pb__WorkerInfo info = CW__PB__WORKER_INFO__INIT;
    Cw__Pb__Hello hello = CW__PB__HELLO__INIT;
    Cw__Pb__Enrol enrol = CW__PB__ENROL__INIT;
    Cw__Pb__Welcome welcome = CW__PB__WELCOME__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    info.data_address = (char *)"tcp://127.0.0.1:5", info.isa = (char *)"avx2", info.speed = 1.5f,
    info.threads = 2;
    hello.proto_min = hello.proto_max = 1, hello.role = CW__PB__ROLE__ROLE_WORKER, hello.name = (char *)"w",
    hello.software = (char *)"causeway";
    hello.instance = (ProtobufCBinaryData){CW_INSTANCE_BYTES, bytes32},
    hello.model_digest = (ProtobufCBinaryData){32, bytes32}, hello.worker = &info;
    env.body_case = CW__PB__ENVELOPE__BODY_HELLO, env.hello = &hello;
    save("hello", (uint8_t[]){2, 0, 0, 0}, &env, NULL, 0);
    enrol.token = (ProtobufCBinaryData){20, bytes32}, enrol.hello = &hello;
    env.body_case = CW__PB__ENVELOPE__BODY_ENROL, env.enrol = &enrol;
    save("enrol", (uint8_t[]){2, 0, 0, 0}, &env, NULL, 0);
    welcome.proto = 1, welcome.cluster_id = (ProtobufCBinaryData){16, bytes32},
    welcome.model_digest = welcome.sign_key = (ProtobufCBinaryData){32, bytes32};
    welcome.heartbeat_ms = 2000, welcome.store_address = (char *)"tcp://[::1]:5571",
    welcome.revoked = (ProtobufCBinaryData){32, bytes32};
    env.body_case = CW__PB__ENVELOPE__BODY_WELCOME, env.welcome = &welcome;
    save("welcome", (uint8_t[]){0, 0, 0, 0}, &env, NULL, 0);
}

static void sets_and_store(void)
{
    Cw__Pb__LayerSet set[2] = {CW__PB__LAYER_SET__INIT, CW__PB__LAYER_SET__INIT},
                     *sets[2] = {&set[0], &set[1]};
    Cw__Pb__Assign assign = CW__PB__ASSIGN__INIT;
    Cw__Pb__Holdings holdings = CW__PB__HOLDINGS__INIT;
    Cw__Pb__ChunkGet get = CW__PB__CHUNK_GET__INIT;
    Cw__Pb__ChunkPart part = CW__PB__CHUNK_PART__INIT;
    Cw__Pb__CallFail fail = CW__PB__CALL_FAIL__INIT;
    Cw__Pb__Envelope env = CW__PB__ENVELOPE__INIT;
    for (uint32_t i = 0; i < 2; i++) set[i].layer = i + 1, set[i].experts = (ProtobufCBinaryData){4, bytes32};
    assign.seq = 3, assign.n_sets = 2, assign.sets = sets;
    env.body_case = CW__PB__ENVELOPE__BODY_ASSIGN, env.assign = &assign;
    save("assign", (uint8_t[]){0, 0, 0, 65}, &env, NULL, 0);
    holdings.n_ready = 2, holdings.ready = sets, holdings.trouble = (char *)"full";
    env.body_case = CW__PB__ENVELOPE__BODY_HOLDINGS, env.holdings = &holdings;
    save("holdings", (uint8_t[]){0, 0, 0, 64}, &env, NULL, 0);
    get.chunk = 9, get.length = 4096;
    env.body_case = CW__PB__ENVELOPE__BODY_CHUNK_GET, env.chunk_get = &get;
    save("chunk_get", (uint8_t[]){0, 0, 0, 68}, &env, NULL, 0);
    part.chunk = 9, part.total = 32;
    env.body_case = CW__PB__ENVELOPE__BODY_CHUNK_PART, env.chunk_part = &part;
    save("chunk_part", (uint8_t[]){0, 0, 0, 69}, &env, &(cw_frame){.data = bytes32, .len = 32}, 1);
    fail.code = CW__PB__FAIL_CODE__FAIL_NOT_HERE, fail.text = (char *)"moved";
    env.body_case = CW__PB__ENVELOPE__BODY_CALL_FAIL, env.call_fail = &fail;
    save("call_fail", (uint8_t[]){0, 0, 0, 74}, &env, NULL, 0);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: seeds_frames DIRECTORY\n");
        return 2;
    }
    dir = argv[1];
    for (size_t i = 0; i < sizeof bytes32; i++) bytes32[i] = (uint8_t)(i * 5 + 1);
    calls_and_replies();
    introductions();
    sets_and_store();
    return 0;
}
