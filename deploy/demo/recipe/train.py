#!/usr/bin/env python3
"""Train the teacher, then distil the student.

  train.py teacher DATA OUT.pt --minutes 50
  train.py student DATA OUT.pt --minutes 20 --teacher TEACHER.pt

The learning-rate schedule follows the wall clock, so a run always ends on time;
a checkpoint is written every 10 minutes, and starting again with the same OUT
goes on where it stopped (with the same end time).
"""

import argparse, os, signal, sys, time
import numpy as np, torch
import model as M
from bpe import BOS, EOS, USER, ASST


class Stream:
    """Chunks of N tokens from a packed file, with documents and loss weights.

    Short answers weigh more a token than long stories (sqrt(60 / length), at most 2.5, at least 0.4), or the
    lists and facts, a few tokens each, would hardly count; questions and system texts weigh 0.1.
    """

    def __init__(self, path, N, prompt_weight=0.1):
        self.t = np.fromfile(path, np.uint16)
        self.N = N
        t = self.t
        mark = (t == USER) | (t == ASST) | (t == EOS) | (t == BOS)
        seg = np.cumsum(mark) - 1
        start = np.flatnonzero(mark)
        size = np.diff(np.append(start, len(t)))
        kind = t[start]
        w = np.clip(np.sqrt(60 / size), 0.4, 2.5)
        w[(kind == USER) | ((kind == BOS) & (size < 16))] = prompt_weight
        w = w[seg]
        w[t == ASST] = prompt_weight
        w[t == USER] = prompt_weight
        e = np.flatnonzero(t == EOS)
        w[e] = w[e - 1]
        self.w = w.astype(np.float32)
        self.n = (len(t) - 2) // N

    def chunk(self, i):
        s = i % self.n * self.N
        t = self.t[s : s + self.N + 2].astype(np.int64)
        w = self.w[s : s + self.N + 2]
        N = self.N
        doc = np.flatnonzero(t[:N] == BOS)
        if len(doc) == 0 or doc[0] != 0:
            doc = np.concatenate([[0], doc])
        doc = np.concatenate([doc, [N]])
        ok = t != BOS
        T = torch.from_numpy
        w1 = w[1 : N + 1] * ok[1 : N + 1]
        w2 = w[2:] * ok[1 : N + 1] * ok[2:]
        return (
            T(t[:N]),
            T(doc),
            T(t[1 : N + 1]),
            T(w1 / w1.sum()),
            T(t[2:]),
            T(w2 / w2.sum()),
            T(ok[1 : N + 1].copy()),
            T((ok[1 : N + 1] & ok[2:])),
        )


def schedule(p, step):
    return min(1, (step + 1) / 60) * (1.0 if p < 0.3 else max(0.02, 1 - (p - 0.3) / 0.7))


@torch.no_grad()
def evaluate(m, st, n, mtp=False):
    s = c = s2 = h2 = c2 = 0
    for i in range(min(n, st.n)):
        t, doc, y, w, y2, w2, ok, ok2 = st.chunk(i)
        x = m.hidden(t, doc)
        _, l, _ = M.HeadLoss.apply(m.out_norm(x), m.head, y, w)
        s += l[ok].sum().item()
        c += ok.sum().item()
        if mtp:
            _, l, h = M.HeadLoss.apply(m.mtp_hidden(x, y, doc), m.head, y2, w2)
            s2 += l[ok2].sum().item()
            h2 += h[ok2].sum().item()
            c2 += ok2.sum().item()
    return (s / c, s2 / max(c2, 1), h2 / max(c2, 1))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('what')
    ap.add_argument('data')
    ap.add_argument('out')
    ap.add_argument('--minutes', type=float, default=50)
    ap.add_argument('--tokens', type=int, default=8192)
    ap.add_argument('--adam', type=float, default=2e-3)
    ap.add_argument('--muon', type=float, default=0.02)
    ap.add_argument('--muon-experts', type=int, default=1)
    ap.add_argument('--teacher')
    ap.add_argument('--file', default='train.bin')
    ap.add_argument('--steps', type=int, default=0)
    ap.add_argument('--start', type=int, default=0)
    ap.add_argument('--alpha', type=float, default=0.7)
    a = ap.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(1)
    teach = a.what == 'teacher'
    m = M.Teacher() if teach else M.Student()
    opt = M.Optim(m, a.adam, a.muon, bool(a.muon_experts))
    big = None
    if a.teacher:
        big = M.Teacher()
        big.load_state_dict(torch.load(a.teacher)['model'])
        for p in big.parameters():
            p.requires_grad_(False)
    tr, va, tv = (
        Stream(f'{a.data}/{a.file}', a.tokens),
        Stream(a.data + '/val.bin', 4096),
        Stream(a.data + '/tales-val.bin', 4096),
    )
    step, t0 = 0, time.time()
    end = t0 + a.minutes * 60
    if os.path.exists(a.out):
        ck = torch.load(a.out)
        m.load_state_dict(ck['model'])
        opt.load(ck['opt'])
        step, t0, end = ck['step'], ck['t0'], ck['end']
        print('resumed at step', step, flush=True)

    def save(opt_too=True):
        torch.save(
            dict(model=m.state_dict(), opt=opt.state() if opt_too else None, step=step, t0=t0, end=end),
            a.out + '.tmp',
        )
        os.replace(a.out + '.tmp', a.out)

    print(
        'parameters',
        sum(p.numel() for p in m.parameters()),
        'train tokens',
        len(tr.t),
        'steps an epoch',
        tr.n,
        flush=True,
    )
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))  # SIGTERM: checkpoint, then leave
    last = saved = time.time()
    run = n = 0.0
    perm = np.random.default_rng(9).permutation(tr.n)
    while True:
        now = time.time()
        p = (now - t0) / (end - t0) if not a.steps else step / a.steps
        if p >= 1:
            break
        f = schedule(p, step)
        t, doc, y, w, y2, w2, ok, _ = tr.chunk(int(perm[(step + a.start) % tr.n]))
        x = m.hidden(t, doc)
        l2 = torch.zeros(())
        if teach:
            loss, _, _ = M.HeadLoss.apply(m.out_norm(x), m.head, y, w)
            l2, _, _ = M.HeadLoss.apply(m.mtp_hidden(x, y, doc), m.head, y2, w2)
            (loss + 0.3 * l2).backward()
            for b in m.moes():
                b.bias += 0.003 * max(f, 0.05) * torch.sign(b.load.mean() - b.load)
        else:
            lg = M.lin(m.out_norm(x), m.head)
            with torch.no_grad():
                te = M.lin(big.out_norm(big.hidden(t, doc)), big.head)
            g = lg.detach()
            ce, kl = M.distil(g, te, y, w, a.alpha)
            loss, l2 = (ce * w).sum(), (kl * w).sum()  # g becomes the gradient in place
            lg.backward(g)
        opt.step(f)
        step += 1
        run += loss.item()
        n += 1
        if step % 20 == 0:
            dt = time.time() - last
            last = time.time()
            ld = ' '.join(f'{(b.load.max() / b.load.mean()).item():.1f}' for b in m.moes()) if teach else ''
            print(
                f'{time.strftime("%H:%M:%S")} step {step} p {p:.3f} lr {f:.2f} loss {run / n:.4f} {"mtp" if teach else "kl"} {l2.item():.3f} tok/s {20 * a.tokens / dt:.0f} load max/mean {ld}',
                flush=True,
            )
            run = n = 0
        if step % 200 == 0:
            e = evaluate(m, va, 6, teach)
            e2 = evaluate(m, tv, 3, teach)
            print(
                f'  held-out loss {e[0]:.4f} (mtp {e[1]:.4f} top1 {e[2]:.3f}), tales {e2[0]:.4f} (mtp top1 {e2[2]:.3f})',
                flush=True,
            )
        if stop:
            save()
            sys.exit('stopped at step %d' % step)
        if time.time() - saved > 600:
            save()
            saved = time.time()
    e = evaluate(m, va, 99, teach)
    e2 = evaluate(m, tv, 99, teach)
    print(
        f'end: step {step}, tokens {step * a.tokens}, held-out loss {e[0]:.4f} (mtp {e[1]:.4f} top1 {e[2]:.3f}), tales {e2[0]:.4f} (mtp top1 {e2[2]:.3f})',
        flush=True,
    )
    save()


if __name__ == '__main__':
    main()
