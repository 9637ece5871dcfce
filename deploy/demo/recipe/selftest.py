"""Check the C kernels and gradients against plain torch."""

import math, torch, torch.nn.functional as F
import model as M

torch.manual_seed(0)


def err(a, b):
    return ((a - b).norm() / b.norm()).item()


for m, k, n in [(100, 70, 90), (37, 515, 2048), (4096, 256, 176), (13, 33, 35)]:
    x, w = torch.randn(m, k, requires_grad=True), torch.randn(n, k, requires_grad=True)
    g = torch.randn(m, n)
    y = M.lin(x, w)
    y.backward(g)
    a = (y, x.grad, w.grad)
    r = (x @ w.t(), g @ w, g.t() @ x)
    print('lin', (m, k, n), [f'{err(p, q):.1e}' for p, q in zip(a, r)])
c = M.TEACHER
N = 300
doc = torch.tensor([0, 7, 100, 101, 300])


def ref_att(q, k, v, doc, scale):
    o = torch.empty(q.shape[0], q.shape[1], v.shape[2])
    outs = []
    for s, e in zip(doc[:-1], doc[1:]):
        S = torch.einsum('ihd,jhd->hij', q[s:e], k[s:e]) * scale
        S = S.masked_fill(torch.triu(torch.ones(e - s, e - s, dtype=torch.bool), 1), -1e30)
        outs.append(torch.einsum('hij,jhd->ihd', S.softmax(-1), v[s:e]))
    return torch.cat(outs)


def ref_rope(x, doc, base):
    pos = torch.cat([torch.arange(e - s) for s, e in zip(doc[:-1], doc[1:])])
    d = x.shape[-1]
    cs = M.rope_table(d, base)[pos].view(-1, *[1] * (x.dim() - 2), d // 2, 2)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cs[..., 0] - b * cs[..., 1], a * cs[..., 1] + b * cs[..., 0]], -1).flatten(-2)


q, kv, kp = (
    torch.randn(N, 8 * 48, requires_grad=True),
    torch.randn(N, 8 * 64, requires_grad=True),
    torch.randn(N, 16, requires_grad=True),
)
g = torch.randn(N, 256)
o = M.MlaAtt.apply(q, kv, kp, doc, 8, 32, 16, 10000.0)
ga = torch.autograd.grad(o, (q, kv, kp), g)
Q = q.view(N, 8, 48)
KV = kv.view(N, 8, 64)
R = ref_att(
    torch.cat([Q[..., :32], ref_rope(Q[..., 32:], doc, 1e4)], -1),
    torch.cat([KV[..., :32], ref_rope(kp[:, None], doc, 1e4).expand(N, 8, 16)], -1),
    KV[..., 32:],
    doc,
    48**-0.5,
).flatten(1)
gb = torch.autograd.grad(R, (q, kv, kp), g)
print('mla', err(o, R), [f'{err(a, b):.1e}' for a, b in zip(ga, gb)])
q, k, v = (torch.randn(N, 128, requires_grad=True) for _ in range(3))
g = torch.randn(N, 128)
o = M.MhaAtt.apply(q, k, v, doc, 4, 1e4)
ga = torch.autograd.grad(o, (q, k, v), g)
R = ref_att(
    ref_rope(q.view(N, 4, 32), doc, 1e4),
    ref_rope(k.view(N, 4, 32), doc, 1e4),
    v.view(N, 4, 32),
    doc,
    32**-0.5,
).flatten(1)
gb = torch.autograd.grad(R, (q, k, v), g)
print('mha', err(o, R), [f'{err(a, b):.1e}' for a, b in zip(ga, gb)])
x = torch.randn(N, 96, requires_grad=True)
w = torch.randn(96, requires_grad=True)
g = torch.randn(N, 96)
o = M.rms(x, w, 1e-6)
ga = torch.autograd.grad(o, (x, w), g)
R = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w
gb = torch.autograd.grad(R, (x, w), g)
print('rms', err(o, R), [f'{err(a, b):.1e}' for a, b in zip(ga, gb)])
E, f, d = 8, 32, 64
x = torch.randn(N, d, requires_grad=True)
w = torch.rand(N, 3, requires_grad=True)
idx = torch.rand(N, E).topk(3)[1]
A = torch.randn(E, 2 * f, d, requires_grad=True)
B = torch.randn(E, d, f, requires_grad=True)
g = torch.randn(N, d)
o = M.Experts.apply(x, w, idx, A, B)
ga = torch.autograd.grad(o, (x, w, A, B), g)
h = torch.einsum('nd,nkfd->nkf', x, A[idx])
a = F.silu(h[..., :f]) * h[..., f:]
R = (torch.einsum('nkf,nkdf->nkd', a, B[idx]) * w[..., None]).sum(1)
gb = torch.autograd.grad(R, (x, w, A, B), g)
print('moe', err(o, R), [f'{err(a, b):.1e}' for a, b in zip(ga, gb)])
h = torch.randn(50, 64, requires_grad=True)
W = torch.randn(99, 64, requires_grad=True)
t = torch.randint(0, 99, (50,))
wt = torch.rand(50)
o, l, hit = M.HeadLoss.apply(h, W, t, wt)
ga = torch.autograd.grad(o, (h, W))
R = (F.cross_entropy(h @ W.t(), t, reduction='none') * wt).sum()
gb = torch.autograd.grad(R, (h, W))
print(
    'head',
    err(o, R),
    [f'{err(a, b):.1e}' for a, b in zip(ga, gb)],
    hit.mean().item(),
    ((h @ W.t()).argmax(1) == t).float().mean().item(),
)
u = torch.randn(3, 256, 128)
o = M.orthogonalise(u)
print('muon singular values', torch.linalg.svdvals(o)[0, [0, 64, -1]].tolist())
lg, te = torch.randn(40, 64, requires_grad=True), torch.randn(40, 64)
t = torch.randint(0, 64, (40,))
wt = torch.rand(40)
R = ((1 - 0.7) * F.cross_entropy(lg, t, reduction='none') * wt).sum() + 0.7 * (
    F.kl_div(lg.log_softmax(1), te.softmax(1), reduction='none').sum(1) * wt
).sum()
(gb,) = torch.autograd.grad(R, lg)
g = lg.detach().clone()
ce, kl = M.distil(g, te, t, wt, 0.7)
print(
    'distil',
    f'{err(g, gb):.1e}',
    err(ce, F.cross_entropy(lg, t, reduction='none').detach()),
    err(kl, F.kl_div(lg.log_softmax(1), te.softmax(1), reduction='none').sum(1).detach()),
)
