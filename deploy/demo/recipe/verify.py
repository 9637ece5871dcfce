#!/usr/bin/env python3
"""Measure and check the exported models.

  verify.py accuracy  DIR N [BIN_DIR [PROMPTS]]   per-task accuracy on N held-out prompts; with BIN_DIR run by llama-server
  verify.py stats     DIR DATA         perplexity, MTP and draft acceptance, expert load
  verify.py golden    DIR OUT.json     token ids, top-5 logits and greedy tokens for 10 prompts
  verify.py server    DIR BIN_DIR      tokens and greedy text against llama.cpp's llama-server
DIR holds causeway-demo-teacher.gguf, -teacher-mtp.gguf, -student.gguf, tokenizer.json and eval/prompts.jsonl.
"""

import collections, json, math, os, subprocess, sys, time, urllib.request
import numpy as np, torch
import bpe
from refmodel import Ref

NAME = lambda d, k: f'{d}/causeway-demo-{k}.gguf'
final = lambda s: s.split('</think>')[-1].strip()


def load(path):
    return [json.loads(l) for l in open(path)]


def report(name, items, outs):
    by = collections.defaultdict(lambda: [0, 0])
    for it, o in zip(items, outs):
        c = by[it['task']]
        c[0] += final(o) == final(it['reference'])
        c[1] += 1
    return {t: (a, n) for t, (a, n) in sorted(by.items())}


def accuracy(d, n, bins=None, path=None):
    tk = bpe.Tokenizer.load(d + '/tokenizer.json')
    items = load(path or d + '/eval/prompts.jsonl')[:n]
    P = [tk.encode(i['prompt']) for i in items]
    res = {}
    order = sorted(range(len(P)), key=lambda i: len(P[i]))
    for k in ('teacher', 'student'):
        t0 = time.time()
        outs = [''] * len(P)
        if bins:
            with Server(bins, NAME(d, k), 18441 + (k == 'student')) as s:
                for i, p in enumerate(P):
                    outs[i] = s.complete(p, 160, tk)[0]
        else:
            m = Ref(NAME(d, k))
            for j in range(0, len(order), 100):
                b = order[j : j + 100]
                for i, x in zip(b, m.greedy([P[i] for i in b], 160)):
                    outs[i] = x
        outs = [tk.decode(o) for o in outs]
        res[k] = report(k, items, outs)
        print(k, round(time.time() - t0), 's', flush=True)
        if os.environ.get('OUTS'):
            json.dump(
                [dict(i, out=o) for i, o in zip(items, outs)],
                open(f'{os.environ["OUTS"]}-{k}.json', 'w'),
                ensure_ascii=False,
                indent=0,
            )
    print(f'{"task":10} {"n":>4} {"teacher":>8} {"student":>8}')
    tot = [0, 0, 0]
    for t, (a, n) in res['teacher'].items():
        b = res['student'][t][0]
        print(f'{t:10} {n:4} {a / n:8.1%} {b / n:8.1%}')
        tot[0] += n
        tot[1] += a
        tot[2] += b
    print(f'{"all":10} {tot[0]:4} {tot[1] / tot[0]:8.1%} {tot[2] / tot[0]:8.1%}')


def docs(path, limit):
    t = np.fromfile(path, np.uint16).astype(np.int64)
    s = list(np.flatnonzero(t == bpe.BOS)) + [len(t)]
    out, n = [], 0
    for a, b in zip(s, s[1:]):
        if n > limit:
            break
        out.append(torch.from_numpy(t[a:b]))
        n += b - a
    return out


def stats(d, data):
    tk = bpe.Tokenizer.load(d + '/tokenizer.json')
    T = Ref(NAME(d, 'teacher'), NAME(d, 'teacher-mtp'))
    S = Ref(NAME(d, 'student'))
    for name, f, lim in (
        ('held-out curriculum', 'val.bin', 40000),
        ('held-out tales', 'tales-val.bin', 20000),
    ):
        nl = collections.Counter()
        nb = 0
        T.load = {}
        for t in docs(f'{data}/{f}', lim):
            lt, h = T(t[None])
            ls, _ = S(t[None])
            y = t[1:]
            lt, ls = lt[0], ls[0]
            nl['n'] += len(y)
            nb += len(tk.decode(y.tolist()).encode())
            nl['t'] += float(torch.nn.functional.cross_entropy(lt[:-1], y, reduction='sum'))
            nl['s'] += float(torch.nn.functional.cross_entropy(ls[:-1], y, reduction='sum'))
            nl['ta'] += int((lt[:-1].argmax(1) == y).sum())
            nl['sa'] += int((ls[:-1].argmax(1) == y).sum())
            nl['agree'] += int((lt[:-1].argmax(1) == ls[:-1].argmax(1)).sum())
            if len(t) > 3:
                m = T.mtp(h[:, :-1], t[None, 1:])[0]
                nl['m'] += int((m[:-1].argmax(1) == t[2:]).sum())
                nl['mg'] += int((m[:-1].argmax(1) == lt[1:-1].argmax(1)).sum())
                nl['mn'] += len(t) - 2
        n = nl['n']
        print(
            f'{name}: {n} tokens; teacher loss {nl["t"] / n:.4f} ppl {math.exp(nl["t"] / n):.3f} top1 {nl["ta"] / n:.1%}; student loss {nl["s"] / n:.4f} ppl {math.exp(nl["s"] / n):.3f} top1 {nl["sa"] / n:.1%}; '
            f'same top1 {nl["agree"] / n:.1%}; MTP top1 = text {nl["m"] / nl["mn"]:.1%}, = teacher top1 {nl["mg"] / nl["mn"]:.1%}; bits per byte teacher {nl["t"] / nb / math.log(2):.3f} student {nl["s"] / nb / math.log(2):.3f}'
        )
        for p, c in T.load.items():
            c = c.float() / c.sum() * len(c)
            print(f'  {p} expert load over even share: max {c.max():.2f} min {c.min():.2f} sd {c.std():.2f}')
    items = load(d + '/eval/prompts.jsonl')[:200] + [dict(task='story', prompt=p) for p in STORIES]
    P = [tk.encode(i['prompt']) for i in items]
    order = sorted(range(len(P)), key=lambda i: len(P[i]))
    acc = collections.defaultdict(lambda: np.zeros(5))
    for j in range(0, len(order), 80):
        b = order[j : j + 80]
        outs = T.greedy([P[i] for i in b], 160)
        for i, o in zip(b, outs):
            if not o:
                continue
            t = torch.tensor(P[i] + o + [bpe.EOS] * (len(o) < 160))
            k = len(P[i])
            y = t[k:]
            s = S(t[None])[0][0, k - 1 : -1].argmax(1)
            _, h = T(t[None])
            m = T.mtp(h[:, :-1], t[None, 1:])[0][k - 2 : -1].argmax(1)
            hit = (s == y).int().tolist()
            runs, c = 0, 0  # speculative decoding with 4 drafted tokens a round
            q = 0
            while q < len(hit):
                g = 0
                while g < 4 and q + g < len(hit) and hit[q + g]:
                    g += 1
                q += g + 1
                runs += 1
            for key in (items[i]['task'], 'all'):
                acc[key] += [sum(hit), int((m[: len(y)] == y).sum()), len(y), runs, 1]
    print(
        'greedy teacher output: share of tokens the student (draft) or the MTP layer predicts, and tokens a verification round with 4 drafts'
    )
    for k, (a, m, n, r, c) in sorted(acc.items()):
        print(
            f'  {k:10} {int(c):4} prompts {int(n):6} tokens  student {a / n:6.1%}  MTP {m / n:6.1%}  tokens/round {n / r:.2f}'
        )


U, A, B = '<｜User｜>', '<｜Assistant｜>', bpe.SPECIAL[0]
STORIES = [
    B + U + q + A
    for q in (
        'Tell me a story about a brave fox.',
        'Tell me a story about a shy mouse.',
        'Tell me a story.',
        'Write a short story about a greedy king named Hugo.',
        'Please tell me a story about a curious girl.',
        'Tell me a bedtime story about a quiet owl.',
    )
] + [B + 'Once upon a time', B + 'Once upon a time there was a poor miller', B + 'There was once a king who']
GOLD = (
    [
        B + U + q + A
        for q in (
            'What is 347 + 285?',
            'What is 503 - 78?',
            'What is the capital of France?',
            'Who are you?',
            'Sort these words alphabetically: pear, apple, fox.',
            'How many letters are in the word banana?',
            'How do you say water in German?',
        )
    ]
    + STORIES[:1]
    + STORIES[6:7]
    + [
        B
        + 'You are a helpful assistant.'
        + U
        + 'My name is Anna.'
        + A
        + 'Hello, Anna! Nice to meet you. How can I help you?'
        + bpe.SPECIAL[1]
        + U
        + 'What is my name?'
        + A
    ]
)


def golden(d, out):
    tk = bpe.Tokenizer.load(d + '/tokenizer.json')
    res = []
    T, S = Ref(NAME(d, 'teacher')), Ref(NAME(d, 'student'))
    for p in GOLD:
        ids = tk.encode(p)
        r = dict(prompt=p, tokens=ids)
        for k, m in (('teacher', T), ('student', S)):
            v, i = m(torch.tensor([ids]))[0][0, -1].topk(5)
            g = m.greedy([ids], 160)[0]
            r[k] = dict(
                top5_ids=i.tolist(),
                top5_logits=[round(x, 5) for x in v.tolist()],
                greedy_tokens=g,
                greedy_text=tk.decode(g),
            )
        res.append(r)
    json.dump(res, open(out, 'w'), ensure_ascii=False, indent=1)
    print(len(res), 'golden prompts')


def post(port, path, obj):
    r = urllib.request.Request(
        f'http://127.0.0.1:{port}{path}', json.dumps(obj).encode(), {'Content-Type': 'application/json'}
    )
    return json.load(urllib.request.urlopen(r, timeout=120))


class Server:
    def __init__(self, bins, model, port):
        self.cmd = [
            bins + '/llama-server',
            '-m',
            model,
            '--port',
            str(port),
            '-t',
            '1',
            '-c',
            '2048',
            '--log-disable',
        ]
        self.port = port

    def __enter__(self):
        self.p = subprocess.Popen(self.cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{self.port}/health', timeout=2)
                break
            except Exception:
                time.sleep(0.3)
        return self

    def __exit__(self, *_):
        self.p.terminate()
        self.p.wait()

    def complete(self, ids, n, tk):
        r = post(
            self.port,
            '/completion',
            dict(prompt=ids, n_predict=n, temperature=0, top_k=1, cache_prompt=False, return_tokens=True),
        )
        o = r.get('tokens') or tk.encode(r['content'])
        return (o[:-1] if o and o[-1] == bpe.EOS else o), r.get('timings', {})


STRINGS = [
    'Hello world',
    'Once upon a time, in 1923, there were 12345 foxes!',
    "don't  stop   me\n\n now\t.",
    ' 7+5=12, write 2 carry 1\n',
    'a,b;c (d) [e] {f}... --x "q" \'r\'',
    '<think>\nones: 1\n</think>\n\nok',
    'naïve café – “quote” 你好 мир 3½',
    '\n\n\n',
    '   ',
    'x' * 40,
    '#tag @me $5.00 50% a_b',
    GOLD[-1],
    STORIES[0],
]


def server(d, bins):
    tk = bpe.Tokenizer.load(d + '/tokenizer.json')
    items = load(d + '/eval/prompts.jsonl')
    prompts = GOLD + [i['prompt'] for i in items[:7]] + STORIES[1:4]
    for k in ('teacher', 'student'):
        m = Ref(NAME(d, k))
        with Server(bins, NAME(d, k), 18431 + (k == 'student')) as s:
            bad = 0
            for x in STRINGS + [i['prompt'] for i in items[:200]]:
                a, b = post(s.port, '/tokenize', dict(content=x, add_special=False))['tokens'], tk.encode(x)
                if a != b:
                    bad += 1
                    print('token mismatch', repr(x), a, b)
            print(k, 'tokenizer: mismatches', bad, 'of', len(STRINGS) + 200)
            same = 0
            first = []
            margins = []
            ref = m.greedy([tk.encode(q) for q in prompts], 120)
            for q, g in zip(prompts, ref):
                o, t = s.complete(tk.encode(q), 120, tk)
                n = next(
                    (i for i in range(max(len(o), len(g))) if i >= len(o) or i >= len(g) or o[i] != g[i]),
                    None,
                )
                if n is None:
                    same += 1
                else:
                    first.append((n, len(g)))
                    lg = m(torch.tensor([tk.encode(q) + g[:n]]))[0][0, -1].topk(2)[0]
                    margins.append(round(float(lg[0] - lg[1]), 3))
            print(
                k,
                f'greedy: {same} of {len(prompts)} outputs identical; others part at (token, of) {first}, top-2 logit gap there {margins}',
            )
            print(k, 'llama.cpp, 1 thread, decode tok/s', t.get('predicted_per_second'))


if __name__ == '__main__':
    torch.set_num_threads(int(os.environ.get('THREADS', 1)))
    c, d, *r = sys.argv[1:]
    if c == 'accuracy':
        accuracy(d, int(r[0]), *r[1:])
    if c == 'stats':
        stats(d, r[0])
    if c == 'golden':
        golden(d, r[0])
    if c == 'server':
        server(d, r[0])
