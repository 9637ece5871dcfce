/* What a manifest says about the routed experts: the numbers a worker needs to compute without the model
 * file. The manifest matches the cluster's digest, but its maker may have had a strange file, so everything
 * is checked. */
#include <stdio.h>
#include <string.h>

#include "cw/mem.h"
#include "shell_internal.h"

static cw_status arch_u32(const cw_manifest *m, const char *leaf, bool required, uint32_t max, uint32_t *out,
                          cw_err *err)
{
    cw_gguf_str arch;
    char key[160];
    CW_TRY(cw_manifest_shape_str(m, "general.architecture", &arch, err));
    snprintf(key, sizeof key, "%.*s.%s", (int)(arch.len < 64 ? arch.len : 64), arch.data, leaf);
    cw_status s = cw_manifest_shape_u32(m, key, out, err);
    if (s == CW_STATUS_NOT_FOUND && !required) return *out = 0, CW_OK;
    if (s == CW_OK && *out > max)
        s = CW_FAIL(err, CW_STATUS_LIMIT, "the model's %s is %u, at most %u are supported", key, *out, max);
    return s;
}

/* The three matrices of a layer's experts into `shape`; d_model 0 where the layer has none. */
static cw_status read_layer(const cw_manifest *m, int layer, uint32_t n_experts, cw_expert_shape *shape,
                            cw_err *err)
{
    const cw_manifest_tensor *t[CW_N_SLICES];
    char name[64];
    int n = 0;
    for (int s = 0; s < CW_N_SLICES; s++) {
        t[s] = cw_manifest_tensor_find(m, cw_expert_tensor_name(name, sizeof name, layer, s));
        n += t[s] != NULL;
    }
    *shape = (cw_expert_shape){0};
    if (n == 0) return CW_OK;
    if (n != CW_N_SLICES)
        return CW_FAIL(err, CW_STATUS_FORMAT, "layer %d has %d of the three expert tensors", layer, n);
    const cw_manifest_tensor *g = t[CW_SLICE_GATE], *u = t[CW_SLICE_UP], *d = t[CW_SLICE_DOWN];
    bool fits = g->experts && u->experts && d->experts && g->n_dims == 3 && u->n_dims == 3 &&
                d->n_dims == 3 && g->ne[2] == n_experts && u->ne[2] == n_experts && d->ne[2] == n_experts &&
                g->ne[0] == u->ne[0] && g->ne[1] == u->ne[1] && d->ne[0] == g->ne[1] &&
                d->ne[1] == g->ne[0] && g->ne[0] > 0 && g->ne[0] <= 1 << 20 && g->ne[1] > 0 &&
                g->ne[1] <= 1 << 20;
    if (!fits)
        return CW_FAIL(err, CW_STATUS_FORMAT, "the expert tensors of layer %d do not fit together", layer);
    *shape = (cw_expert_shape){.d_model = (int)g->ne[0],
                               .d_ff = (int)g->ne[1],
                               .gate_type = g->type,
                               .up_type = u->type,
                               .down_type = d->type};
    return CW_OK;
}

cw_status model_facts_read(const cw_manifest *m, model_facts *out, cw_err *err)
{
    uint32_t blocks, nextn, n_experts;
    CW_TRY(arch_u32(m, "block_count", true, CW_WIRE_MAX_LAYERS, &blocks, err));
    CW_TRY(arch_u32(m, "nextn_predict_layers", false, CW_WIRE_MAX_LAYERS, &nextn, err));
    CW_TRY(arch_u32(m, "expert_count", true, CW_WIRE_MAX_EXPERTS, &n_experts, err));
    if (nextn >= blocks || n_experts == 0)
        return CW_FAIL(err, CW_STATUS_FORMAT, "a model of %u blocks, %u of them for drafting, and %u experts",
                       blocks, nextn, n_experts);
    uint32_t n_layers = blocks - nextn, d_model = 0;
    cw_expert_shape *shapes = cw_calloc(n_layers, sizeof *shapes);
    if (!shapes) return CW_FAIL(err, CW_STATUS_NO_MEMORY, "out of memory for the model's shapes");
    cw_status s = CW_OK;
    for (uint32_t l = 0; l < n_layers && s == CW_OK; l++) {
        s = read_layer(m, (int)l, n_experts, &shapes[l], err);
        if (s != CW_OK || !shapes[l].d_model) continue;
        if (d_model && (uint32_t)shapes[l].d_model != d_model)
            s = CW_FAIL(err, CW_STATUS_FORMAT, "layer %u is %d wide, others are %u", l, shapes[l].d_model,
                        d_model);
        d_model = (uint32_t)shapes[l].d_model;
    }
    if (s == CW_OK && !d_model) s = CW_FAIL(err, CW_STATUS_FORMAT, "the model has no routed experts");
    if (s != CW_OK) {
        cw_free(shapes);
        return s;
    }
    *out = (model_facts){.n_layers = n_layers, .n_experts = n_experts, .d_model = d_model, .shapes = shapes};
    return CW_OK;
}
