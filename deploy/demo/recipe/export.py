#!/usr/bin/env python3
"""Write the trained models as GGUF v3 files.

  export.py teacher TEACHER.pt TOKENIZER.json OUT.gguf OUT-mtp.gguf
  export.py student STUDENT.pt TOKENIZER.json OUT.gguf

Matrices are Q8_0; norms, router and expert bias stay f32.
"""

import json, struct, sys
import numpy as np
import bpe

GGUF = dict(u32=4, i32=5, f32=6, bool=7, str=8, arr=9)
FMT = dict(u32='<I', i32='<i', f32='<f', bool='<?')

# Same effect as DeepSeek's template: system text first, reasoning dropped from earlier answers.
TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}{% if m['role'] == 'assistant' %}"
    "{% set c = m['content'] %}{% if '</think>' in c %}{% set c = (c.split('</think>')[-1]).strip() %}{% endif %}{{ '<｜Assistant｜>' + c + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)


def val(t, v):
    if t == 'str':
        b = v.encode()
        return struct.pack('<Q', len(b)) + b
    if t == 'arr':
        return struct.pack('<IQ', GGUF[v[0]], len(v[1])) + b''.join(val(v[0], x) for x in v[1])
    return struct.pack(FMT[t], v)


def kv(k, t, v):
    return val('str', k) + struct.pack('<I', GGUF[t]) + val(t, v)


def q8_0(x):
    """ggml's Q8_0: blocks of 32, one f16 scale and 32 int8, rounding half away from zero."""
    b = np.ascontiguousarray(x, np.float32).reshape(-1, 32)
    d = np.abs(b).max(1) / np.float32(127)
    with np.errstate(divide='ignore'):
        inv = np.where(d > 0, np.float32(1) / d, np.float32(0))
    s = b * inv[:, None]
    q = (np.sign(s) * np.floor(np.abs(s) + np.float32(0.5))).astype(np.int8)
    out = np.empty((len(b), 34), np.uint8)
    out[:, :2] = d.astype(np.float16).view(np.uint8).reshape(-1, 2)
    out[:, 2:] = q.view(np.uint8)
    return out.tobytes()


def write(path, kvs, tensors):
    """tensors: (name, float32 array in row-major order, 'q8' or 'f32')."""
    infos, data, off = b'', [], 0
    for n, x, t in tensors:
        b = q8_0(x) if t == 'q8' else np.ascontiguousarray(x, '<f4').tobytes()
        b += b'\0' * (-len(b) % 32)
        infos += (
            val('str', n)
            + struct.pack('<I', x.ndim)
            + struct.pack(f'<{x.ndim}Q', *x.shape[::-1])
            + struct.pack('<IQ', 8 if t == 'q8' else 0, off)
        )
        off += len(b)
        data.append(b)
    head = b'GGUF' + struct.pack('<IQQ', 3, len(tensors), len(kvs)) + b''.join(kvs) + infos
    head += b'\0' * (-len(head) % 32)
    with open(path, 'wb') as f:
        f.write(head)
        f.writelines(data)
    print(path, round((len(head) + off) / 1e6, 2), 'MB', sum(x.size for _, x, _ in tensors), 'parameters')


def vocab(tok):
    t = bpe.Tokenizer.load(tok)
    n = len(bpe.SPECIAL)
    return [
        kv('tokenizer.ggml.model', 'str', 'gpt2'),
        kv('tokenizer.ggml.pre', 'str', 'deepseek-v3'),
        kv('tokenizer.ggml.tokens', 'arr', ('str', t.tokens)),
        kv('tokenizer.ggml.token_type', 'arr', ('i32', bpe.SPECIAL_TYPE + [1] * (len(t.tokens) - n))),
        kv('tokenizer.ggml.merges', 'arr', ('str', [a + ' ' + b for a, b in t.merges])),
        kv('tokenizer.ggml.bos_token_id', 'u32', bpe.BOS),
        kv('tokenizer.ggml.eos_token_id', 'u32', bpe.EOS),
        kv('tokenizer.ggml.padding_token_id', 'u32', bpe.PAD),
        kv('tokenizer.ggml.add_bos_token', 'bool', True),
        kv('tokenizer.ggml.add_eos_token', 'bool', False),
        kv('tokenizer.chat_template', 'str', TEMPLATE),
    ]


def general(arch, name, n):
    return [
        kv('general.architecture', 'str', arch),
        kv('general.type', 'str', 'model'),
        kv('general.name', 'str', name),
        kv('general.size_label', 'str', n),
        kv('general.file_type', 'u32', 7),
        kv('general.quantization_version', 'u32', 2),
        kv('general.alignment', 'u32', 32),
    ]


def block(w, src, dst, c, moe):
    g = lambda k: w[src + k]
    q = lambda n, k: (dst + n + '.weight', k, 'q8')
    f = lambda n, k: (dst + n, k, 'f32')
    ql, kl = c['qlora'], c['kvlora']
    T = [
        f('attn_norm.weight', g('n1')),
        q('attn_q_a', g('att.wa')[:ql]),
        f('attn_q_a_norm.weight', g('att.q_norm')),
        q('attn_q_b', g('att.wqb')),
        q('attn_kv_a_mqa', g('att.wa')[ql:]),
        f('attn_kv_a_norm.weight', g('att.kv_norm')),
        q('attn_kv_b', g('att.wkvb')),
        q('attn_output', g('att.wo')),
        f('ffn_norm.weight', g('n2')),
    ]
    if not moe:
        F = c['ff']
        return T + [
            q('ffn_gate', g('ffn.wgu')[:F]),
            q('ffn_up', g('ffn.wgu')[F:]),
            q('ffn_down', g('ffn.wd')),
        ]
    F = c['eff']
    return T + [
        f('ffn_gate_inp.weight', g('ffn.router')),
        f('exp_probs_b.bias', g('ffn.bias')),
        q('ffn_gate_exps', g('ffn.xgu')[:, :F]),
        q('ffn_up_exps', g('ffn.xgu')[:, F:]),
        q('ffn_down_exps', g('ffn.xd')),
        q('ffn_gate_shexp', g('ffn.shared.wgu')[:F]),
        q('ffn_up_shexp', g('ffn.shared.wgu')[F:]),
        q('ffn_down_shexp', g('ffn.shared.wd')),
    ]


def teacher(w, tok, out, out_mtp):
    from model import TEACHER as c

    A = 'deepseek2.'
    base = [
        kv(A + 'context_length', 'u32', c['ctx']),
        kv(A + 'embedding_length', 'u32', c['d']),
        kv(A + 'feed_forward_length', 'u32', c['ff']),
        kv(A + 'leading_dense_block_count', 'u32', c['dense']),
        kv(A + 'attention.head_count', 'u32', c['H']),
        kv(A + 'attention.head_count_kv', 'u32', c['H']),
        kv(A + 'attention.q_lora_rank', 'u32', c['qlora']),
        kv(A + 'attention.kv_lora_rank', 'u32', c['kvlora']),
        kv(A + 'attention.key_length', 'u32', c['nope'] + c['rope']),
        kv(A + 'attention.value_length', 'u32', c['v']),
        kv(A + 'attention.layer_norm_rms_epsilon', 'f32', c['eps']),
        kv(A + 'rope.dimension_count', 'u32', c['rope']),
        kv(A + 'rope.freq_base', 'f32', c['base']),
        kv(A + 'rope.scaling.type', 'str', 'none'),
        kv(A + 'rope.scaling.yarn_log_multiplier', 'f32', 0.1),
        kv(A + 'vocab_size', 'u32', c['V']),
        kv(A + 'expert_count', 'u32', c['E']),
        kv(A + 'expert_used_count', 'u32', c['K']),
        kv(A + 'expert_shared_count', 'u32', 1),
        kv(A + 'expert_feed_forward_length', 'u32', c['eff']),
        kv(A + 'expert_weights_scale', 'f32', c['scale']),
        kv(A + 'expert_weights_norm', 'bool', True),
        kv(A + 'expert_gating_func', 'u32', 2),
        kv(A + 'expert_group_count', 'u32', 1),
        kv(A + 'expert_group_used_count', 'u32', 1),
    ]
    T = [
        ('token_embd.weight', w['emb'], 'q8'),
        ('output_norm.weight', w['norm'], 'f32'),
        ('output.weight', w['head'], 'q8'),
    ]
    for i in range(c['L']):
        T += block(w, f'blocks.{i}.', f'blk.{i}.', c, i >= c['dense'])
    write(
        out,
        general('deepseek2', 'Causeway demo teacher', '15M')
        + [kv(A + 'block_count', 'u32', c['L'])]
        + base
        + vocab(tok),
        T,
    )
    p = f'blk.{c["L"]}.'
    T = [
        (p + 'nextn.enorm.weight', w['enorm'], 'f32'),
        (p + 'nextn.hnorm.weight', w['hnorm'], 'f32'),
        (p + 'nextn.eh_proj.weight', w['eh'], 'q8'),
        (p + 'nextn.shared_head_norm.weight', w['mnorm'], 'f32'),
    ] + block(w, 'mtp.', p, c, True)
    write(
        out_mtp,
        general('deepseek2', 'Causeway demo teacher, MTP layer', '4M')
        + [kv(A + 'block_count', 'u32', c['L'] + 1), kv(A + 'nextn_predict_layers', 'u32', 1)]
        + base,
        T,
    )


def student(w, tok, out):
    from model import STUDENT as c

    A = 'llama.'
    d, F = c['d'], c['ff']
    K = [
        kv(A + 'block_count', 'u32', c['L']),
        kv(A + 'context_length', 'u32', c['ctx']),
        kv(A + 'embedding_length', 'u32', d),
        kv(A + 'feed_forward_length', 'u32', F),
        kv(A + 'attention.head_count', 'u32', c['H']),
        kv(A + 'attention.head_count_kv', 'u32', c['H']),
        kv(A + 'attention.layer_norm_rms_epsilon', 'f32', c['eps']),
        kv(A + 'rope.dimension_count', 'u32', 32),
        kv(A + 'rope.freq_base', 'f32', c['base']),
        kv(A + 'vocab_size', 'u32', c['V']),
    ]
    T = [
        ('token_embd.weight', w['emb'], 'q8'),
        ('output_norm.weight', w['norm'], 'f32'),
        ('output.weight', w['head'], 'q8'),
    ]
    for i in range(c['L']):
        g = lambda k: w[f'blocks.{i}.{k}']
        p = f'blk.{i}.'
        T += [
            (p + 'attn_norm.weight', g('n1'), 'f32'),
            (p + 'attn_q.weight', g('wq'), 'q8'),
            (p + 'attn_k.weight', g('wk'), 'q8'),
            (p + 'attn_v.weight', g('wv'), 'q8'),
            (p + 'attn_output.weight', g('wo'), 'q8'),
            (p + 'ffn_norm.weight', g('n2'), 'f32'),
            (p + 'ffn_gate.weight', g('ffn.wgu')[:F], 'q8'),
            (p + 'ffn_up.weight', g('ffn.wgu')[F:], 'q8'),
            (p + 'ffn_down.weight', g('ffn.wd'), 'q8'),
        ]
    n = sum(x.size for x in w.values()) / 1e6
    write(out, general('llama', 'Causeway demo student', f'{n:.1f}M') + K + vocab(tok), T)


def main():
    import torch

    w = {k: v.float().numpy() for k, v in torch.load(sys.argv[2], map_location='cpu')['model'].items()}
    (teacher if sys.argv[1] == 'teacher' else student)(w, *sys.argv[3:])


if __name__ == '__main__':
    main()
