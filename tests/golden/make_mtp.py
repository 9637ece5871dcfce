#!/usr/bin/env python3
"""What the demo model's prediction head foresees, computed apart from the C code: float64, dequantised weights.

    make_mtp.py TEACHER.gguf MTP.gguf EVAL_GOLDEN.json > data/demo-mtp.json

For some conversations of the demo's golden set (prompt and greedy answer) and every position i behind the prompt's
first half: the best tokens for i+2 from the model's hidden state at i and token i+1, and, with the best of them taken
as token i+2, the best tokens for i+3 from the head's own output. Formulas: the demo's model card.
"""
import json, struct, sys
import numpy as np

SIZES = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}
CASES, KEEP = (0, 2, 4, 7), 5


class Gguf:
    def __init__(self, path):
        self.b, self.at = open(path, 'rb').read(), 24
        n_tensors, n_keys = struct.unpack_from('<QQ', self.b, 8)
        self.kv, infos, self.tensors = {}, [], {}
        for _ in range(n_keys):
            key = self.text()
            self.kv[key.split('.', 1)[1]] = self.value(self.take('<I'))
        for _ in range(n_tensors):
            name, dims = self.text(), self.take('<I')
            shape = [self.take('<Q') for _ in range(dims)]
            infos.append((name, shape[::-1], self.take('<I'), self.take('<Q')))
        base = (self.at + 31) // 32 * 32
        for name, shape, kind, offset in infos:
            n = int(np.prod(shape))
            if kind == 0:
                x = np.frombuffer(self.b, '<f4', n, base + offset).astype(np.float64)
            else:  # Q8_0
                raw = np.frombuffer(self.b, np.uint8, n // 32 * 34, base + offset).reshape(-1, 34)
                scale = raw[:, :2].copy().view('<f2').astype(np.float64)
                x = scale * raw[:, 2:].copy().view(np.int8).astype(np.float64)
            self.tensors[name.removesuffix('.weight').removesuffix('.bias')] = x.reshape(shape)

    def take(self, form):
        v, = struct.unpack_from(form, self.b, self.at)
        self.at += struct.calcsize(form)
        return v

    def text(self):
        n = self.take('<Q')
        self.at += n
        return self.b[self.at - n:self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            elem, n = self.take('<I'), self.take('<Q')
            return [self.value(elem) for _ in range(n)]
        return self.take('<' + SIZES[kind])


class Model:
    def __init__(self, path, mtp):
        g = Gguf(path)
        self.kv, self.t = g.kv, g.tensors | Gguf(mtp).tensors
        self.layers = self.kv['block_count']

    def norm(self, x, name):
        eps = self.kv['attention.layer_norm_rms_epsilon']
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.t[name]

    def rope(self, x, at):  # [n, heads, d], pairs side by side
        d = x.shape[-1]
        angle = at[:, None] * float(self.kv['rope.freq_base']) ** (-np.arange(0, d, 2) / d)
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        p, q = x[..., 0::2], x[..., 1::2]
        return np.stack([p * c - q * s, p * s + q * c], -1).reshape(x.shape)

    def attention(self, x, p):
        n, kv, heads = len(x), self.kv, self.kv['attention.head_count']
        d_rope, rank = kv['rope.dimension_count'], kv['attention.kv_lora_rank']
        d_nope, at = kv['attention.key_length'] - d_rope, np.arange(n)
        q = self.norm(x @ self.t[p + 'attn_q_a'].T, p + 'attn_q_a_norm') @ self.t[p + 'attn_q_b'].T
        q = q.reshape(n, heads, -1)
        a = x @ self.t[p + 'attn_kv_a_mqa'].T
        up = (self.norm(a[:, :rank], p + 'attn_kv_a_norm') @ self.t[p + 'attn_kv_b'].T).reshape(n, heads, -1)
        key_rope = np.repeat(self.rope(a[:, None, rank:], at), heads, 1)
        q = np.concatenate([q[..., :d_nope], self.rope(q[..., d_nope:], at)], -1)
        k = np.concatenate([up[..., :d_nope], key_rope], -1)
        s = np.einsum('ihd,jhd->hij', q, k) * (d_nope + d_rope) ** -.5
        s = np.where(np.arange(n)[None] > at[:, None], -np.inf, s)
        s = np.exp(s - s.max(-1, keepdims=True))
        s /= s.sum(-1, keepdims=True)
        o = np.einsum('hij,jhd->ihd', s, up[..., d_nope:]).reshape(n, -1)
        return o @ self.t[p + 'attn_output'].T

    @staticmethod
    def gated(x, gate, up, down):
        g = x @ gate.T
        return (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T

    def experts(self, x, p):
        score = 1 / (1 + np.exp(-(x @ self.t[p + 'ffn_gate_inp'].T)))
        chosen = np.argsort(-(score + self.t[p + 'exp_probs_b']), axis=1)[:, :self.kv['expert_used_count']]
        w = np.take_along_axis(score, chosen, 1)
        w = w / w.sum(1, keepdims=True) * self.kv['expert_weights_scale']
        y = self.gated(x, *(self.t[p + f'ffn_{k}_shexp'] for k in ('gate', 'up', 'down')))
        for i, row in enumerate(chosen):
            for e, weight in zip(row, w[i]):
                y[i] += weight * self.gated(x[i:i + 1], *(self.t[p + f'ffn_{k}_exps'][e] for k in ('gate', 'up', 'down')))[0]
        return y

    def block(self, x, layer):
        p = f'blk.{layer}.'
        x = x + self.attention(self.norm(x, p + 'attn_norm'), p)
        h = self.norm(x, p + 'ffn_norm')
        if p + 'ffn_gate_inp' in self.t:
            return x + self.experts(h, p)
        return x + self.gated(h, *(self.t[p + f'ffn_{k}'] for k in ('gate', 'up', 'down')))

    def hidden(self, tokens):
        x = self.t['token_embd'][tokens]
        for l in range(self.layers):
            x = self.block(x, l)
        return x

    def head(self, hidden, following):
        p = f'blk.{self.layers}.nextn.'
        pair = np.concatenate([self.norm(self.t['token_embd'][following], p + 'enorm'), self.norm(hidden, p + 'hnorm')], -1)
        out = self.block(pair @ self.t[p + 'eh_proj'].T, self.layers)
        return out, self.norm(out, p + 'shared_head_norm') @ self.t['output'].T


def best(logits):
    ids = np.argsort(-logits)[:KEEP]
    return {'ids': [int(i) for i in ids], 'logits': [round(float(logits[i]), 4) for i in ids]}


def main():
    model = Model(sys.argv[1], sys.argv[2])
    cases = []
    golden = json.load(open(sys.argv[3]))
    golden = golden if isinstance(golden, list) else golden['prompts']
    for g in (golden[i] for i in CASES):
        prompt = g['tokens']
        tokens = prompt + g['teacher']['greedy_tokens'][:40]
        hidden = model.hidden(tokens)
        out, logits = model.head(hidden[:-1], tokens[1:])
        rows = []
        for i in range(len(prompt) // 2, len(tokens) - 1):
            first = best(logits[i])
            again, _ = np.concatenate([hidden[:i + 1], out[i:i + 1]]), None
            second = model.head(again, tokens[1:i + 2] + [first['ids'][0]])[1][-1]
            rows.append({'at': i, 'first': first, 'second': best(second)})
        cases.append({'tokens': tokens, 'rows': rows})
    json.dump({'cases': cases}, sys.stdout)
    print()


main()
