"""The two demo models for training: DeepSeek-V3-shaped teacher and llama-shaped student.

Both read a flat stream of tokens cut in documents; positions restart at each
document and attention never crosses a document border.
"""

import ctypes, math, os
import torch
import torch.nn as nn
import torch.nn.functional as F

K = ctypes.CDLL(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'kern.so'))
P = lambda t: ctypes.c_void_p(t.data_ptr())
I = ctypes.c_long
FL = ctypes.c_float

TEACHER = dict(
    V=2048,
    d=256,
    L=5,
    dense=1,
    ff=512,
    H=8,
    qlora=96,
    kvlora=64,
    nope=32,
    rope=16,
    v=32,
    E=32,
    K=4,
    eff=128,
    scale=2.0,
    eps=1e-6,
    base=10000.0,
    ctx=2048,
)
STUDENT = dict(V=2048, d=128, L=4, ff=384, H=4, eps=1e-5, base=10000.0, ctx=2048)
STUDENT.update(
    (k, int(v)) for k, v in (x.split('=') for x in os.environ.get('STUDENT', '').split(',') if x)
)  # e.g. STUDENT=d=64,L=2,H=2,ff=192


# ------------------------------------------------------------- autograd glue
class Lin(torch.autograd.Function):  # y = x W^T in bf16 with fp32 sums
    @staticmethod
    def forward(c, x, w):
        y = x.new_empty(x.shape[0], w.shape[0])
        c.save_for_backward(x, w)
        K.gemm(
            0,
            1,
            I(x.shape[0]),
            I(w.shape[0]),
            I(w.shape[1]),
            P(x),
            I(x.stride(0)),
            P(w),
            I(w.shape[1]),
            P(y),
            I(w.shape[0]),
        )
        return y

    @staticmethod
    def backward(c, dy):
        x, w = c.saved_tensors
        dy = dy.contiguous()
        n, o, i = x.shape[0], w.shape[0], w.shape[1]
        dx = x.new_empty(n, i)
        dw = torch.empty_like(w)
        K.gemm(0, 0, I(n), I(i), I(o), P(dy), I(o), P(w), I(i), P(dx), I(i))
        K.gemm(1, 0, I(o), I(i), I(n), P(dy), I(o), P(x), I(x.stride(0)), P(dw), I(i))
        return dx, dw


class Rms(torch.autograd.Function):  # rows may be a column slice of a wider matrix
    @staticmethod
    def forward(c, x, w, eps):
        n, d = x.shape
        y = x.new_empty(n, d)
        r = x.new_empty(n)
        c.save_for_backward(x, w, r)
        K.rms_fwd(I(n), I(d), P(x), I(x.stride(0)), P(w), P(y), P(r), FL(eps))
        return y

    @staticmethod
    def backward(c, dy):
        x, w, r = c.saved_tensors
        dy = dy.contiguous()
        n, d = x.shape
        dx = x.new_empty(n, d)
        dw = torch.empty_like(w)
        K.rms_bwd(I(n), I(d), P(x), I(x.stride(0)), P(w), P(r), P(dy), P(dx), I(d), P(dw))
        return dx, dw, None


class Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(c, h):
        n, f = h.shape[0], h.shape[1] // 2
        a = h.new_empty(n, f)
        c.save_for_backward(h)
        K.swiglu_fwd(I(n), I(f), P(h), P(a))
        return a

    @staticmethod
    def backward(c, da):
        (h,) = c.saved_tensors
        dh = torch.empty_like(h)
        da = da.contiguous()
        K.swiglu_bwd(I(h.shape[0]), I(h.shape[1] // 2), P(h), P(da), P(dh))
        return dh


class Att(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_void_p) for n in ('q', 'kn', 'kp', 'v')]
        + [(n, I) for n in ('kn_t', 'kn_h', 'kp_t', 'kp_h', 'v_t', 'v_h')]
        + [('cs', ctypes.c_void_p), ('H', I), ('dn', I), ('dr', I), ('scale', FL)]
    )


_cs = {}


def rope_table(dr, base, n=2048):
    if (dr, base) not in _cs:
        f = base ** (-torch.arange(0, dr, 2).double() / dr)
        a = torch.arange(n).double()[:, None] * f
        _cs[dr, base] = torch.stack([a.cos(), a.sin()], -1).flatten(1).float().contiguous()
    return _cs[dr, base]


class MlaAtt(torch.autograd.Function):
    """q [N,H*(dn+dr)], kv [N,H*(dn+32)] (per head: nope key, value), kpe: a view [N,dr] with any row stride."""

    @staticmethod
    def make(q, kv, kpe, H, dn, dr, base):
        return Att(
            q.data_ptr(),
            kv.data_ptr(),
            kpe.data_ptr(),
            kv.data_ptr() + 4 * dn,
            H * (dn + 32),
            dn + 32,
            kpe.stride(0),
            0,
            H * (dn + 32),
            dn + 32,
            rope_table(dr, base).data_ptr(),
            H,
            dn,
            dr,
            1 / math.sqrt(dn + dr),
        )

    @staticmethod
    def forward(c, q, kv, kpe, doc, H, dn, dr, base):
        n = q.shape[0]
        out = q.new_empty(n, H * 32)
        lse = q.new_empty(n, H)
        c.hp = (H, dn, dr, base)
        K.att_fwd(
            ctypes.byref(MlaAtt.make(q, kv, kpe, H, dn, dr, base)), I(len(doc) - 1), P(doc), P(out), P(lse)
        )
        c.save_for_backward(q, kv, kpe, doc, out, lse)
        return out

    @staticmethod
    def backward(c, dout):
        q, kv, kpe, doc, out, lse = c.saved_tensors
        H, dn, dr, base = c.hp
        n = q.shape[0]
        dout = dout.contiguous()
        dq = torch.empty_like(q)
        dkn = q.new_empty(n, H, dn)
        dkp = q.new_empty(n, H, dr)
        dv = q.new_empty(n, H, 32)
        K.att_bwd(
            ctypes.byref(MlaAtt.make(q, kv, kpe, H, dn, dr, base)),
            I(len(doc) - 1),
            P(doc),
            P(out),
            P(lse),
            P(dout),
            P(dq),
            P(dkn),
            P(dkp),
            P(dv),
        )
        return dq, torch.cat([dkn, dv], 2).view(n, -1), dkp.sum(1), None, None, None, None, None


class MhaAtt(torch.autograd.Function):  # plain heads of 32, rope over the whole head; qkv [N, 3*H*32]
    @staticmethod
    def make(q, k, v, H, base):
        return Att(
            q.data_ptr(),
            0,
            k.data_ptr(),
            v.data_ptr(),
            0,
            0,
            H * 32,
            32,
            H * 32,
            32,
            rope_table(32, base).data_ptr(),
            H,
            0,
            32,
            1 / math.sqrt(32),
        )

    @staticmethod
    def forward(c, q, k, v, doc, H, base):
        n = q.shape[0]
        out = q.new_empty(n, H * 32)
        lse = q.new_empty(n, H)
        c.hp = (H, base)
        K.att_fwd(ctypes.byref(MhaAtt.make(q, k, v, H, base)), I(len(doc) - 1), P(doc), P(out), P(lse))
        c.save_for_backward(q, k, v, doc, out, lse)
        return out

    @staticmethod
    def backward(c, dout):
        q, k, v, doc, out, lse = c.saved_tensors
        H, base = c.hp
        n = q.shape[0]
        dout = dout.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dn = q.new_empty(1)
        K.att_bwd(
            ctypes.byref(MhaAtt.make(q, k, v, H, base)),
            I(len(doc) - 1),
            P(doc),
            P(out),
            P(lse),
            P(dout),
            P(dq),
            P(dn),
            P(dk),
            P(dv),
        )
        return dq, dk, dv, None, None, None


class Experts(torch.autograd.Function):
    """x [N,d], w [N,K] weights, idx [N,K] experts, wgu [E,2f,d] (gate rows, then up rows), wd [E,d,f]."""

    @staticmethod
    def forward(c, x, w, idx, wgu, wd):
        N, k = idx.shape
        E, f2, d = wgu.shape
        f = f2 // 2
        R = N * k
        order = torch.argsort(idx.flatten(), stable=True)
        pos = torch.empty_like(order)
        pos[order] = torch.arange(R)
        off = torch.zeros(E + 1, dtype=torch.long)
        off[1:] = torch.bincount(idx.flatten(), minlength=E).cumsum(0)
        xs = x.new_empty(R, d)
        K.gather(I(N), I(k), I(d), P(x), P(pos), P(xs))
        h = x.new_empty(R, f2)
        K.grouped(0, I(E), P(off), I(f2), I(d), P(xs), P(wgu), P(h))
        a = x.new_empty(R, f)
        K.swiglu_fwd(I(R), I(f), P(h), P(a))
        y = x.new_empty(R, d)
        K.grouped(0, I(E), P(off), I(d), I(f), P(a), P(wd), P(y))
        w = w.contiguous()
        out = x.new_empty(N, d)
        K.combine(I(N), I(k), I(d), P(y), P(w), P(pos), P(out))
        c.save_for_backward(w, pos, off, xs, h, a, y, wgu, wd)
        return out

    @staticmethod
    def backward(c, dout):
        w, pos, off, xs, h, a, y, wgu, wd = c.saved_tensors
        N, k = w.shape
        E, f2, d = wgu.shape
        f = f2 // 2
        R = N * k
        dout = dout.contiguous()
        dy = torch.empty_like(y)
        dw = torch.empty_like(w)
        K.combine_bwd(I(N), I(k), I(d), P(dout), P(y), P(w), P(pos), P(dy), P(dw))
        da = torch.empty_like(a)
        K.grouped(1, I(E), P(off), I(d), I(f), P(dy), P(wd), P(da))
        dwd = torch.empty_like(wd)
        K.grouped(2, I(E), P(off), I(d), I(f), P(dy), P(a), P(dwd))
        dh = torch.empty_like(h)
        K.swiglu_bwd(I(R), I(f), P(h), P(da), P(dh))
        dxs = torch.empty_like(xs)
        K.grouped(1, I(E), P(off), I(f2), I(d), P(dh), P(wgu), P(dxs))
        dwgu = torch.empty_like(wgu)
        K.grouped(2, I(E), P(off), I(f2), I(d), P(dh), P(xs), P(dwgu))
        dx = dout.new_empty(N, d)
        K.combine(I(N), I(k), I(d), P(dxs), ctypes.c_void_p(0), P(pos), P(dx))
        return dx, dw, None, dwgu, dwd


class HeadLoss(torch.autograd.Function):
    """Output head and weighted cross-entropy in one: returns (weighted sum, per-token loss, hits)."""

    @staticmethod
    def forward(c, h, W, tgt, wt):
        n, d = h.shape
        V = W.shape[0]
        lg = h.new_empty(n, V)
        loss = h.new_empty(n)
        hit = h.new_empty(n)
        K.gemm(0, 1, I(n), I(V), I(d), P(h), I(d), P(W), I(d), P(lg), I(V))
        K.xent(I(n), I(V), P(lg), P(tgt), P(wt), P(loss), P(hit))
        if W.requires_grad:
            dh = torch.empty_like(h)
            dW = torch.empty_like(W)
            K.gemm(0, 0, I(n), I(d), I(V), P(lg), I(V), P(W), I(d), P(dh), I(d))
            K.gemm(1, 0, I(V), I(d), I(n), P(lg), I(V), P(h), I(d), P(dW), I(d))
            c.save_for_backward(dh, dW)
        c.mark_non_differentiable(loss, hit)
        return (loss * wt).sum(), loss, hit

    @staticmethod
    def backward(c, g, *_):
        dh, dW = c.saved_tensors
        return dh * g, dW * g, None, None


def distil(lg, te, tgt, wt, alpha):
    """Turn student logits into their gradient (in place); returns per-token cross-entropy and KL."""
    n, V = lg.shape
    ce = lg.new_empty(n)
    kl = lg.new_empty(n)
    K.distil(I(n), I(V), P(lg), P(te), P(tgt), P(wt), FL(alpha), P(ce), P(kl))
    return ce, kl


lin, rms, swiglu = Lin.apply, Rms.apply, Swiglu.apply


# ------------------------------------------------------------------- teacher
def mat(o, i, s=1.0):
    return nn.Parameter(torch.randn(o, i) * s / math.sqrt(i))


class Mla(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        d, H = c['d'], c['H']
        self.wa = mat(c['qlora'] + c['kvlora'] + c['rope'], d)  # q_a rows, then kv_a rows
        self.q_norm = nn.Parameter(torch.ones(c['qlora']))
        self.kv_norm = nn.Parameter(torch.ones(c['kvlora']))
        self.wqb = mat(H * (c['nope'] + c['rope']), c['qlora'])
        self.wkvb = mat(H * (c['nope'] + c['v']), c['kvlora'])
        self.wo = mat(d, H * c['v'], 0.3)

    def forward(self, x, doc):
        c = self.c
        a = lin(x, self.wa)
        ql, kl = c['qlora'], c['kvlora']
        q = lin(rms(a[:, :ql], self.q_norm, c['eps']), self.wqb)
        kv = lin(rms(a[:, ql : ql + kl], self.kv_norm, c['eps']), self.wkvb)
        return lin(
            MlaAtt.apply(q, kv, a[:, ql + kl :], doc, c['H'], c['nope'], c['rope'], c['base']), self.wo
        )


class Ffn(nn.Module):
    def __init__(self, d, f):
        super().__init__()
        self.wgu = mat(2 * f, d)
        self.wd = mat(d, f, 0.3)

    def forward(self, x):
        return lin(swiglu(lin(x, self.wgu)), self.wd)


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        d, E, f = c['d'], c['E'], c['eff']
        self.router = nn.Parameter(torch.randn(E, d) / math.sqrt(d))
        self.register_buffer('bias', torch.zeros(E))
        self.xgu = nn.Parameter(torch.randn(E, 2 * f, d) / math.sqrt(d))
        self.xd = nn.Parameter(torch.randn(E, d, f) * 0.3 / math.sqrt(f))
        self.shared = Ffn(d, f)
        self.load = None

    def forward(self, x):
        c = self.c
        s = torch.sigmoid(x @ self.router.t())
        idx = torch.topk(s.detach() + self.bias, c['K'], sorted=False)[1]
        w = s.gather(1, idx)
        w = w / w.sum(1, keepdim=True) * c['scale']
        self.load = torch.bincount(idx.flatten(), minlength=c['E']).float()
        return Experts.apply(x, w, idx, self.xgu, self.xd) + self.shared(x)


class Block(nn.Module):
    def __init__(self, c, moe):
        super().__init__()
        self.eps = c['eps']
        self.n1 = nn.Parameter(torch.ones(c['d']))
        self.n2 = nn.Parameter(torch.ones(c['d']))
        self.att = Mla(c)
        self.ffn = Moe(c) if moe else Ffn(c['d'], c['ff'])

    def forward(self, x, doc):
        x = x + self.att(rms(x, self.n1, self.eps), doc)
        return x + self.ffn(rms(x, self.n2, self.eps))


class Teacher(nn.Module):
    def __init__(self, c=TEACHER):
        super().__init__()
        self.c = c
        d = c['d']
        self.emb = nn.Parameter(torch.randn(c['V'], d) * 0.5)
        self.blocks = nn.ModuleList(Block(c, i >= c['dense']) for i in range(c['L']))
        self.norm = nn.Parameter(torch.ones(d))
        self.head = nn.Parameter(torch.randn(c['V'], d) * 0.02)
        # MTP module: enorm(embedding of the next token) | hnorm(last hidden, before the output norm) -> eh_proj -> block -> norm -> same head
        self.enorm, self.hnorm, self.mnorm = (nn.Parameter(torch.ones(d)) for _ in range(3))
        self.eh = mat(d, 2 * d)
        self.mtp = Block(c, True)

    def hidden(self, tok, doc):
        x = F.embedding(tok, self.emb)
        for b in self.blocks:
            x = b(x, doc)
        return x

    def out_norm(self, x):
        return rms(x, self.norm, self.c['eps'])

    def mtp_hidden(self, x, nxt, doc):
        e = self.c['eps']
        z = lin(
            torch.cat([rms(F.embedding(nxt, self.emb), self.enorm, e), rms(x, self.hnorm, e)], 1), self.eh
        )
        return rms(self.mtp(z, doc), self.mnorm, e)

    def moes(self):
        return [b.ffn for b in list(self.blocks)[self.c['dense'] :]] + [self.mtp.ffn]


# ------------------------------------------------------------------- student
class SBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        d = c['d']
        self.n1 = nn.Parameter(torch.ones(d))
        self.n2 = nn.Parameter(torch.ones(d))
        self.wq, self.wk, self.wv = (mat(d, d) for _ in range(3))
        self.wo = mat(d, d, 0.3)
        self.ffn = Ffn(d, c['ff'])

    def forward(self, x, doc):
        c = self.c
        h = rms(x, self.n1, c['eps'])
        x = x + lin(
            MhaAtt.apply(lin(h, self.wq), lin(h, self.wk), lin(h, self.wv), doc, c['H'], c['base']), self.wo
        )
        return x + self.ffn(rms(x, self.n2, c['eps']))


class Student(nn.Module):
    def __init__(self, c=STUDENT):
        super().__init__()
        self.c = c
        d = c['d']
        self.emb = nn.Parameter(torch.randn(c['V'], d) * 0.5)
        self.blocks = nn.ModuleList(SBlock(c) for _ in range(c['L']))
        self.norm = nn.Parameter(torch.ones(d))
        self.head = nn.Parameter(torch.randn(c['V'], d) * 0.02)

    def hidden(self, tok, doc):
        x = F.embedding(tok, self.emb)
        for b in self.blocks:
            x = b(x, doc)
        return x

    def out_norm(self, x):
        return rms(x, self.norm, self.c['eps'])


# ----------------------------------------------------------------- optimiser
def orthogonalise(g, steps=4):
    """Newton-Schulz on a batch of matrices [B, m, n] (Muon), bf16 products."""
    B, m, n = g.shape
    t = m > n
    x = g.transpose(1, 2).contiguous() if t else g.clone()
    m, n = x.shape[1:]
    x /= x.flatten(1).norm(dim=1)[:, None, None] + 1e-7
    a = x.new_empty(B, m, m)
    b = x.new_empty(B, m, m)
    y = torch.empty_like(x)
    for _ in range(steps):
        K.batched(0, 1, I(B), I(m), I(m), I(n), P(x), P(x), P(a))
        K.batched(0, 0, I(B), I(m), I(m), I(m), P(a), P(a), P(b))
        b.mul_(2.0315).add_(a, alpha=-4.7750)
        K.batched(0, 0, I(B), I(m), I(n), I(m), P(b), P(x), P(y))
        x.mul_(3.4445).add_(y)
    return x.transpose(1, 2) if t else x


class Optim:
    """Muon for hidden matrices, AdamW for embeddings, head, router and norms."""

    def __init__(self, model, lr_adam, lr_muon, muon_experts=True, wd=0.05):
        self.groups = []
        self.t = 0
        self.la, self.lm, self.wd = lr_adam, lr_muon, wd
        for n, p in model.named_parameters():
            mu = (
                p.dim() >= 2
                and not any(s in n for s in ('emb', 'head', 'router'))
                and (muon_experts or p.dim() == 2)
            )
            self.groups.append(
                (
                    n,
                    p,
                    mu,
                    (
                        dict(m=torch.zeros_like(p.data))
                        if mu
                        else dict(m=torch.zeros_like(p.data), v=torch.zeros_like(p.data))
                    ),
                )
            )

    def step(self, f):
        """One step with learning rates scaled by f."""
        self.t += 1
        t = self.t
        b1, b2 = 0.9, 0.95
        for n, p, mu, s in self.groups:
            g = p.grad
            if g is None:
                continue
            g = g.contiguous()
            if mu:
                mom = 0.85 + 0.1 * min(1, t / 300)
                s['m'].mul_(mom).add_(g, alpha=1 - mom)
                u = g.mul(1 - mom).add_(s['m'], alpha=mom)
                u = u[None] if u.dim() == 2 else u
                # gate and up rows are two matrices
                if n.endswith('gu'):
                    B, r, c = u.shape
                    o = orthogonalise(u.reshape(B * 2, r // 2, c)).reshape(B, r, c)
                    r = r // 2
                else:
                    o = orthogonalise(u)
                    r, c = u.shape[1:]
                lr = self.lm * f
                p.data.mul_(1 - lr * self.wd).add_(o.reshape(p.shape), alpha=-lr * max(1, r / c) ** 0.5)
            else:
                lr = self.la * f * (1.5 if n in ('emb',) else 1.0)
                K.adamw(
                    I(p.numel()),
                    P(p.data),
                    P(g),
                    P(s['m']),
                    P(s['v']),
                    FL(lr),
                    FL(b1),
                    FL(b2),
                    FL(1 / (1 - b1**t)),
                    FL(1 / (1 - b2**t)),
                    FL(1e-8),
                    FL(0.0 if p.dim() == 1 else 0.01),
                )
            p.grad = None

    def state(self):
        return dict(t=self.t, s=[s for *_, s in self.groups])

    def load(self, st):
        self.t = st['t']
        for (*_, s), o in zip(self.groups, st['s']):
            for k in s:
                s[k].copy_(o[k])
