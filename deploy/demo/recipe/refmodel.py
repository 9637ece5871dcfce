"""Plain float32 torch reference that reads the GGUF files (dequantised) and nothing else.

Written apart from model.py on purpose: it checks the export as well as the training code.
Arch `deepseek2` (MLA, sigmoid-gated experts, optional MTP file) and arch `llama`.
"""

import struct
import numpy as np, torch
import torch.nn.functional as F

SIZES = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}


def read_gguf(path):
    b = open(path, 'rb').read()
    off = 24
    nt, nk = struct.unpack_from('<QQ', b, 8)

    def s():
        nonlocal off
        (n,) = struct.unpack_from('<Q', b, off)
        off += 8 + n
        return b[off - n : off].decode()

    def v(t):
        nonlocal off
        if t == 8:
            return s()
        if t == 9:
            e, n = struct.unpack_from('<IQ', b, off)
            off += 12
            return [v(e) for _ in range(n)]
        (x,) = struct.unpack_from('<' + SIZES[t], b, off)
        off += struct.calcsize(SIZES[t])
        return x

    kv = {}
    for _ in range(nk):
        k = s()
        (t,) = struct.unpack_from('<I', b, off)
        off += 4
        kv[k] = v(t)
    inf = []
    for _ in range(nt):
        n = s()
        (d,) = struct.unpack_from('<I', b, off)
        off += 4
        sh = struct.unpack_from(f'<{d}Q', b, off)
        off += 8 * d
        t, o = struct.unpack_from('<IQ', b, off)
        off += 12
        inf.append((n, sh[::-1], t, o))
    base = (off + 31) // 32 * 32
    T = {}
    for n, sh, t, o in inf:
        m = int(np.prod(sh))
        if t == 0:
            x = np.frombuffer(b, '<f4', m, base + o).copy()
        else:
            r = np.frombuffer(b, np.uint8, m // 32 * 34, base + o).reshape(-1, 34)
            x = r[:, :2].copy().view('<f2').astype(np.float32) * r[:, 2:].copy().view(np.int8).astype(
                np.float32
            )
        T[n] = torch.from_numpy(x.reshape(sh).copy())
    return kv, T


def norm(x, w, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def rope(x, pos, base):  # x [B,T,H,dr], interleaved pairs
    d = x.shape[-1]
    a = pos.double()[:, None] * base ** (-torch.arange(0, d, 2).double() / d)
    c, s = a.cos().float()[None, :, None], a.sin().float()[None, :, None]
    p, q = x[..., 0::2], x[..., 1::2]
    return torch.stack([p * c - q * s, p * s + q * c], -1).flatten(-2)


def attend(q, k, v, scale, pos):  # keys 0.., queries at positions pos
    m = torch.arange(k.shape[1])[None] > pos[:, None]
    S = torch.einsum('bihd,bjhd->bhij', q, k) * scale
    S = S.masked_fill(m, -1e30).softmax(-1)
    return torch.einsum('bhij,bjhd->bihd', S, v).flatten(2)


class Ref:
    def __init__(self, path, mtp=None):
        self.kv, self.T = read_gguf(path)
        a = self.arch = self.kv['general.architecture']
        g = lambda k: self.kv.get(f'{a}.{k}')
        self.L, self.H, self.eps, self.base = (
            g('block_count'),
            g('attention.head_count'),
            g('attention.layer_norm_rms_epsilon'),
            g('rope.freq_base'),
        )
        self.g = g
        self.load = {}
        self.base = float(self.base)
        if mtp:
            self.T.update(read_gguf(mtp)[1])

    def mla(self, x, p, pos, past):
        T, H, g, B, n = self.T, self.H, self.g, x.shape[0], x.shape[1]
        dr = g('rope.dimension_count')
        dn = g('attention.key_length') - dr
        dv = g('attention.value_length')
        r = g('attention.kv_lora_rank')
        q = (
            norm(x @ T[p + 'attn_q_a.weight'].t(), T[p + 'attn_q_a_norm.weight'], self.eps)
            @ T[p + 'attn_q_b.weight'].t()
        ).view(B, n, H, dn + dr)
        a = x @ T[p + 'attn_kv_a_mqa.weight'].t()
        kv = (
            norm(a[..., :r], T[p + 'attn_kv_a_norm.weight'], self.eps) @ T[p + 'attn_kv_b.weight'].t()
        ).view(B, n, H, dn + dv)
        q = torch.cat([q[..., :dn], rope(q[..., dn:], pos, self.base)], -1)
        k = torch.cat([kv[..., :dn], rope(a[..., None, r:], pos, self.base).expand(B, n, H, dr)], -1)
        v = kv[..., dn:]
        if past is not None:
            if p in past:
                k, v = torch.cat([past[p][0], k], 1), torch.cat([past[p][1], v], 1)
            past[p] = (k, v)
        return attend(q, k, v, (dn + dr) ** -0.5, pos) @ T[p + 'attn_output.weight'].t()

    def mha(self, x, p, pos, past):
        T, H, B, n = self.T, self.H, x.shape[0], x.shape[1]
        q, k, v = ((x @ T[p + f'attn_{c}.weight'].t()).view(B, n, H, -1) for c in 'qkv')
        q, k = rope(q, pos, self.base), rope(k, pos, self.base)
        if past is not None:
            if p in past:
                k, v = torch.cat([past[p][0], k], 1), torch.cat([past[p][1], v], 1)
            past[p] = (k, v)
        return attend(q, k, v, q.shape[-1] ** -0.5, pos) @ T[p + 'attn_output.weight'].t()

    def ffn(self, x, p, s=''):
        T = self.T
        return (F.silu(x @ T[p + f'ffn_gate{s}.weight'].t()) * (x @ T[p + f'ffn_up{s}.weight'].t())) @ T[
            p + f'ffn_down{s}.weight'
        ].t()

    def moe(self, x, p):
        T, g = self.T, self.g
        sh = x.shape
        x = x.reshape(-1, sh[-1])
        s = torch.sigmoid(x @ T[p + 'ffn_gate_inp.weight'].t())
        idx = torch.topk(s + T[p + 'exp_probs_b.bias'], g('expert_used_count'))[1]
        w = s.gather(1, idx)
        w = w / w.sum(1, keepdim=True) * g('expert_weights_scale')
        out = self.ffn(x, p, '_shexp')
        self.load[p] = self.load.get(p, 0) + torch.bincount(idx.flatten(), minlength=s.shape[1])
        for e in range(s.shape[1]):
            r, k = (idx == e).nonzero(as_tuple=True)
            if len(r):
                y = x[r]
                y = (
                    F.silu(y @ T[p + 'ffn_gate_exps.weight'][e].t())
                    * (y @ T[p + 'ffn_up_exps.weight'][e].t())
                ) @ T[p + 'ffn_down_exps.weight'][e].t()
                out.index_add_(0, r, y * w[r, k, None])
        return out.view(sh)

    def block(self, x, i, pos, past):
        p = f'blk.{i}.'
        T = self.T
        h = norm(x, T[p + 'attn_norm.weight'], self.eps)
        x = x + (self.mla if self.arch == 'deepseek2' else self.mha)(h, p, pos, past)
        h = norm(x, T[p + 'ffn_norm.weight'], self.eps)
        return x + (self.moe(h, p) if p + 'ffn_gate_inp.weight' in T else self.ffn(h, p))

    @torch.no_grad()
    def __call__(self, tok, past=None, start=0):
        """tok [B,n] at positions start.. -> (logits [B,n,V], last hidden before the output norm)."""
        pos = torch.arange(start, start + tok.shape[1])
        x = self.T['token_embd.weight'][tok]
        for i in range(self.L):
            x = self.block(x, i, pos, past)
        return norm(x, self.T['output_norm.weight'], self.eps) @ self.T['output.weight'].t(), x

    @torch.no_grad()
    def mtp(self, hidden, nxt):
        """From the hidden state at i and token i+1, logits for token i+2 (whole sequence at once)."""
        T = self.T
        p = f'blk.{self.L}.'
        z = (
            torch.cat(
                [
                    norm(T['token_embd.weight'][nxt], T[p + 'nextn.enorm.weight'], self.eps),
                    norm(hidden, T[p + 'nextn.hnorm.weight'], self.eps),
                ],
                -1,
            )
            @ T[p + 'nextn.eh_proj.weight'].t()
        )
        z = self.block(z, self.L, torch.arange(z.shape[1]), None)
        return norm(z, T[p + 'nextn.shared_head_norm.weight'], self.eps) @ T['output.weight'].t()

    @torch.no_grad()
    def greedy(self, prompts, n, eos=1):
        """Greedy continuations of many prompts (lists of ids) at once."""
        P = max(map(len, prompts))
        B = len(prompts)
        out = [[] for _ in prompts]
        past = {}
        cur = torch.tensor([p[0] for p in prompts])
        live = [True] * B
        for t in range(P + n - 1):
            lg = self(cur[:, None], past, t)[0][:, 0].argmax(-1)
            nxt = []
            for b in range(B):
                if t + 1 < len(prompts[b]):
                    nxt.append(prompts[b][t + 1])
                    continue
                k = int(lg[b])
                nxt.append(k)
                if live[b]:
                    if k == eos:
                        live[b] = False
                    else:
                        out[b].append(k)
                        if len(out[b]) >= n:
                            live[b] = False
            if not any(live):
                break
            cur = torch.tensor(nxt)
        return out
