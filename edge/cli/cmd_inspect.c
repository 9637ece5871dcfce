/* causeway inspect: what a model file says, what was inferred, and the memory each role would need. */
#include "cw/json.h"
#include "cw/mem.h"
#include "cw/mtp.h"
#include "cw/progress.h"
#include "cw/type.h"
#include "setup.h"

#include <stdio.h>
#include <string.h>

static const char *bytes(uint64_t n)
{
    static char text[8][32]; /* several in one printf */
    static unsigned next;
    char *t = text[next++ % CW_ARRAY_LEN(text)];
    return cw_bytes_text(n, t, sizeof text[0]);
}

static const char *inferred(const cw_model_config *c, unsigned bit)
{
    return c->inferred & bit ? "  (inferred: the file does not say)" : "";
}

static const char *gate_name(const cw_model_config *c)
{
    return c->gate == CW_GATE_SIGMOID ? "sigmoid" : "softmax";
}

static void print_attention(const cw_model_config *c)
{
    if (c->mla)
        printf("attention       latent, %d heads, key %d + %d rotary, value %d, kv rank %d, q rank %d%s\n",
               c->n_heads, c->d_nope, c->d_rope, c->d_v, c->kv_lora, c->q_lora,
               c->split_kv ? ", split k_b/v_b" : "");
    else
        printf("attention       %d heads of %d, %d for keys and values\n", c->n_heads, c->d_head,
               c->n_kv_heads);
    printf("rotary          base %.0f", c->rope_base);
    if (c->rope_scaling == CW_ROPE_SCALING_YARN)
        printf(", YaRN factor %g from %d tokens, log multiplier %g%s", c->rope_factor, c->rope_orig_ctx,
               c->yarn_log_mul, inferred(c, CW_INFERRED_YARN_MUL));
    if (c->rope_scaling == CW_ROPE_SCALING_LINEAR) printf(", linear factor %g", c->rope_factor);
    putchar('\n');
}

static void print_experts(const cw_model_config *c)
{
    if (c->n_experts == 0) return;
    printf("experts         %d a layer in %d layers, %d used, %d shared, width %d\n", c->n_experts,
           c->n_layers - c->n_dense, c->n_used, c->n_shared, c->d_expert);
    printf("gate            %s%s%s\n", gate_name(c), c->gate_bias ? " with bias" : "",
           inferred(c, CW_INFERRED_GATE));
    printf("gate weights    %s%s\n", c->norm_weights ? "normalised" : "not normalised",
           inferred(c, CW_INFERRED_NORM));
    printf("gate scale      %g%s\n", (double)c->weights_scale, inferred(c, CW_INFERRED_SCALE));
    printf("expert groups   %d, %d used%s\n", c->n_groups, c->n_groups_used, inferred(c, CW_INFERRED_GROUPS));
}

static void print_text(const char *path, const cw_gguf *g, const cw_model_facts *f)
{
    const cw_model_config *c = &f->config;
    printf("file            %s", path);
    if (cw_gguf_shard_count(g) > 1) printf(" and %d more", cw_gguf_shard_count(g) - 1);
    printf("\nmodel           %s (%s)\n", c->name, cw_arch_name(c->arch));
    printf("parameters      %.2f M in %s\n", (double)f->n_params / 1e6, bytes(f->file_bytes));
    printf("layers          %d", c->n_layers);
    if (c->n_dense && c->n_experts) printf(", the first %d dense", c->n_dense);
    if (c->n_nextn) printf(", %d more for multi-token prediction", c->n_nextn);
    printf("\nwidth           %d, feed-forward %d\n", c->d_model, c->d_ff);
    printf("vocabulary      %d%s\n", c->n_vocab, c->tied_output ? ", output tied to the embedding" : "");
    printf("context         %d%s\n", c->n_ctx_train, inferred(c, CW_INFERRED_CTX));
    print_attention(c);
    print_experts(c);
    printf("\ntensor types\n");
    for (int i = 0; i < f->n_types; i++)
        printf("  %-12s  %5u tensors  %s\n", cw_type_name(f->types[i].type), f->types[i].n_tensors,
               bytes(f->types[i].bytes));
    if (f->n_ignored) printf("  not used      %5u tensors\n", f->n_ignored);
    printf("\nin memory\n");
    printf("  edge          %s  (everything but routed experts)\n", bytes(f->edge_bytes));
    if (c->n_experts)
        printf("  workers       %s together; one expert %s\n", bytes(f->expert_bytes),
               bytes(f->one_expert_bytes));
    printf("  KV cache      %s a token\n", bytes(f->kv_bytes_per_token));
}

/* The head that could draft: the file's own or the one of --mtp. */
typedef struct {
    bool there, usable;
    cw_mtp_facts facts;
    cw_err why_not;
} head;

static cw_status look_at_head(const cli_options *o, const cw_gguf *g, const cw_model_config *c, head *h,
                              cw_err *err)
{
    *h = (head){.there = o->mtp || c->n_nextn > 0};
    if (!h->there) return CW_OK;
    cw_gguf *companion = NULL;
    if (o->mtp) CW_TRY(cw_gguf_open(o->mtp, &companion, err));
    h->usable = cw_mtp_describe(g, c, companion, &h->facts, &h->why_not) == CW_OK;
    cw_gguf_close(&companion);
    return CW_OK;
}

static void print_head(const cli_options *o, const head *h)
{
    if (!h->there) return;
    printf("\nprediction head %s: ", o->mtp ? o->mtp : "in the file");
    if (h->usable)
        printf("block %d%s, %.2f M parameters, %s more on the edge; it can draft up to %d tokens "
               "(--drafter mtp)\n",
               h->facts.block, h->facts.moe ? " with experts" : "", (double)h->facts.n_params / 1e6,
               bytes(h->facts.edge_bytes), CW_MTP_MAX);
    else
        printf("cannot be used (%s)\n", h->why_not.text);
}

static void json_head(cw_json *j, const head *h)
{
    if (!h->there) return;
    cw_json_key(j, "prediction_head");
    cw_json_object(j);
    cw_json_kbool(j, "usable", h->usable);
    if (h->usable) {
        cw_json_kint(j, "block", h->facts.block);
        cw_json_kuint(j, "parameters", h->facts.n_params);
        cw_json_kuint(j, "edge_bytes", h->facts.edge_bytes);
    } else {
        cw_json_kstr(j, "why", h->why_not.text);
    }
    cw_json_end(j);
}

/* 1: the fallback can draft, 0: another vocabulary, -1: none was named. */
static cw_status compare_vocabularies(const cli_options *o, const cw_gguf *g, int *out, cw_err *err)
{
    *out = -1;
    if (!o->fallback) return CW_OK;
    cw_gguf *small = NULL;
    cw_tok *a = NULL, *b = NULL;
    cw_status s = cw_tok_new(g, &a, err);
    if (s == CW_OK) s = cw_gguf_open(o->fallback, &small, err);
    if (s == CW_OK) s = cw_tok_new(small, &b, err);
    if (s == CW_OK) *out = cw_tok_same_vocab(a, b);
    cw_tok_free(&a);
    cw_tok_free(&b);
    cw_gguf_close(&small);
    return s;
}

static void json_config(cw_json *j, const cw_model_config *c)
{
    cw_json_kstr(j, "architecture", cw_arch_name(c->arch));
    cw_json_kstr(j, "name", c->name);
    cw_json_kint(j, "layers", c->n_layers);
    cw_json_kint(j, "vocab", c->n_vocab);
    cw_json_kint(j, "width", c->d_model);
    cw_json_kint(j, "context", c->n_ctx_train);
    cw_json_kint(j, "heads", c->n_heads);
    cw_json_kint(j, "experts", c->n_experts);
    cw_json_kint(j, "experts_used", c->n_used);
    cw_json_kint(j, "experts_shared", c->n_shared);
    cw_json_kint(j, "dense_layers", c->n_dense);
    cw_json_kstr(j, "gate", c->n_experts ? gate_name(c) : NULL);
    cw_json_kint(j, "groups", c->n_groups);
    cw_json_kint(j, "groups_used", c->n_groups_used);
    cw_json_kbool(j, "groups_inferred", (c->inferred & CW_INFERRED_GROUPS) != 0);
}

static bool print_json(const cw_model_facts *f, int drafts, const head *h)
{
    cw_json j;
    cw_json_to_file(&j, stdout);
    cw_json_object(&j);
    json_config(&j, &f->config);
    cw_json_kuint(&j, "parameters", f->n_params);
    cw_json_kuint(&j, "file_bytes", f->file_bytes);
    cw_json_kuint(&j, "edge_bytes", f->edge_bytes);
    cw_json_kuint(&j, "expert_bytes", f->expert_bytes);
    cw_json_kuint(&j, "one_expert_bytes", f->one_expert_bytes);
    cw_json_kuint(&j, "kv_bytes_per_token", f->kv_bytes_per_token);
    if (drafts >= 0) cw_json_kbool(&j, "fallback_can_draft", drafts);
    json_head(&j, h);
    cw_json_key(&j, "types");
    cw_json_array(&j);
    for (int i = 0; i < f->n_types; i++) {
        cw_json_object(&j);
        cw_json_kstr(&j, "type", cw_type_name(f->types[i].type));
        cw_json_kuint(&j, "tensors", f->types[i].n_tensors);
        cw_json_kuint(&j, "bytes", f->types[i].bytes);
        cw_json_end(&j);
    }
    cw_json_end(&j);
    cw_json_end(&j);
    return cw_json_done(&j);
}

int cli_inspect(const cli_options *o, const cw_parsed *p)
{
    if (o->model && p->n_args) return cli_usage("name the file once, either with -m or as an argument");
    cw_err err = {0};
    char *path = NULL;
    cw_gguf *g = NULL;
    cw_model_facts facts;
    cw_model_options mo;
    cli_options with_file = *o;
    if (p->n_args) with_file.model = p->args[0];
    cw_status s = cli_model_options(o, &mo, &err);
    if (s == CW_OK) s = cli_model_path(&with_file, &path, &err);
    if (s == CW_OK) s = cw_gguf_open(path, &g, &err);
    if (s == CW_OK) s = cw_model_describe(g, &mo, &facts, &err);
    int drafts = -1;
    head h;
    if (s == CW_OK) s = look_at_head(o, g, &facts.config, &h, &err);
    if (s == CW_OK) s = compare_vocabularies(o, g, &drafts, &err);
    if (s == CW_OK) {
        if (o->json)
            (void)print_json(&facts, drafts, &h);
        else
            print_text(path, g, &facts);
        if (!o->json) print_head(o, &h);
        if (!o->json && drafts >= 0)
            printf("\nfallback        %s: %s\n", o->fallback,
                   drafts ? "the same vocabulary, so it can also draft (--mode draft)"
                          : "another vocabulary, so it can stand in but not draft");
        if (fflush(stdout) != 0 || ferror(stdout))
            s = CW_FAIL(&err, CW_STATUS_IO, "standard output could not be written");
    }
    cw_gguf_close(&g);
    cw_free(path);
    return s == CW_OK ? 0 : cli_fail(&err);
}
