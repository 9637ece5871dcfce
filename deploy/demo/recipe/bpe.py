#!/usr/bin/env python3
"""Byte-level BPE (GPT-2 byte mapping) with the `deepseek-v3` pre-tokenizer of llama.cpp.

  bpe.py train TEXT OUT.json VOCAB     TEXT: documents separated by NUL
  bpe.py encode TOK.json               ids of stdin

Digits never merge, so every digit is its own token.
"""

import collections, json, re, sys, unicodedata

SPECIAL = [
    '<｜begin▁of▁sentence｜>',
    '<｜end▁of▁sentence｜>',
    '<｜▁pad▁｜>',
    '<｜User｜>',
    '<｜Assistant｜>',
    '<think>',
    '</think>',
]
SPECIAL_TYPE = [3, 3, 3, 3, 3, 4, 4]  # GGUF: 3 control, 4 user defined (always shown)
BOS, EOS, PAD, USER, ASST, THINK, ETHINK = range(7)


def byte_map():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    m, n = {}, 0
    for b in range(256):
        if b in keep:
            m[b] = chr(b)
        else:
            m[b] = chr(256 + n)
            n += 1
    return m


B2U = byte_map()
U2B = {v: k for k, v in B2U.items()}

# Non-ASCII characters are replaced by one stand-in a class before matching, so the plain
# `re` module can play \p{L} \p{M} \p{N} \p{P} \p{S}.
L_, M_, N_, P_, S_, C_ = '\ue000\ue001\ue002\ue003\ue004\ue005'
AP = re.escape('!"#%&\'()*,-./:;?@[\\]_{}')
AS = re.escape('$+<=>^`|~')  # ASCII \p{P}, \p{S}
LET, PS = f'A-Za-z{L_}', f'{AP}{AS}{P_}{S_}'
STAGE = [
    re.compile(f'[0-9{N_}]{{1,3}}'),
    re.compile(f'[{C_}]+'),
    re.compile(
        f'[{AP}{AS}][A-Za-z]+|[^\r\n{LET}{C_}{PS}]?[{LET}{C_}{M_}]+| ?[{PS}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+'
    ),
]


def collapse(t):
    if t.isascii():
        return t
    out = []
    for c in t:
        if ord(c) < 128:
            out.append(c)
            continue
        if '\u4e00' <= c <= '\u9fa5' or '\u3040' <= c <= '\u30ff':
            out.append(C_)
            continue
        k = unicodedata.category(c)
        out.append({'L': L_, 'M': M_, 'N': N_, 'P': P_, 'S': S_}.get(k[0], ' ' if c.isspace() else '\x00'))
    return ''.join(out)


def pretokens(t):
    c = collapse(t)
    spans = [(0, len(t))]
    for rx in STAGE:
        nxt = []
        for a, b in spans:
            i = a
            sub = c[a:b]
            for m in rx.finditer(sub):
                if a + m.start() > i:
                    nxt.append((i, a + m.start()))
                if m.end() > m.start():
                    nxt.append((a + m.start(), a + m.end()))
                i = a + m.end()
            if i < b:
                nxt.append((i, b))
        spans = nxt
    return [t[a:b] for a, b in spans]


SPLIT = re.compile('(' + '|'.join(map(re.escape, SPECIAL)) + ')')


class Tokenizer:
    def __init__(self, merges):
        self.merges = [tuple(m) for m in merges]
        self.rank = {m: i for i, m in enumerate(self.merges)}
        self.tokens = SPECIAL + [B2U[i] for i in range(256)] + [a + b for a, b in self.merges]
        self.ids = {t: i for i, t in enumerate(self.tokens)}
        self.special = {t: i for i, t in enumerate(SPECIAL)}
        self.cache = {}

    @staticmethod
    def load(path):
        return Tokenizer(json.load(open(path))['merges'])

    def _word(self, w):
        r = self.cache.get(w)
        if r is not None:
            return r
        s = [B2U[b] for b in w.encode()]
        while len(s) > 1:
            k, i = min((self.rank.get((s[i], s[i + 1]), 1 << 30), i) for i in range(len(s) - 1))
            if k == 1 << 30:
                break
            s[i : i + 2] = [s[i] + s[i + 1]]
        r = [self.ids[x] for x in s]
        if len(self.cache) < 1 << 18:
            self.cache[w] = r
        return r

    def encode(self, text):
        out = []
        for part in SPLIT.split(text):
            if part in self.special:
                out.append(self.special[part])
            elif part:
                for w in pretokens(part):
                    out += self._word(w)
        return out

    def decode(self, ids):
        out = b''
        for i in ids:
            out += self.tokens[i].encode() if i < len(SPECIAL) else bytes(U2B[c] for c in self.tokens[i])
        return out.decode('utf-8', 'replace')


def train(text, vocab):
    counts = collections.Counter()
    for doc in text.split('\0'):
        for part in SPLIT.split(doc):
            if part and part not in SPECIAL:
                counts.update(pretokens(part))
    words = [[B2U[b] for b in w.encode()] for w in counts]
    freq = list(counts.values())
    pairs = collections.Counter()
    where = collections.defaultdict(set)

    def bump(i, sign):
        w = words[i]
        for p in zip(w, w[1:]):
            if not any(c.isdigit() for c in p[0] + p[1]):
                pairs[p] += sign * freq[i]
                if sign > 0:
                    where[p].add(i)

    for i in range(len(words)):
        bump(i, 1)
    merges = []
    while len(merges) < vocab - 256 - len(SPECIAL):
        p = max(pairs, key=lambda q: (pairs[q], q))
        if pairs[p] < 2:
            break
        merges.append(p)
        for i in where.pop(p):
            w = words[i]
            bump(i, -1)
            j, n = 0, []
            while j < len(w):
                if j + 1 < len(w) and (w[j], w[j + 1]) == p:
                    n.append(w[j] + w[j + 1])
                    j += 2
                else:
                    n.append(w[j])
                    j += 1
            words[i] = n
            bump(i, 1)
        pairs[p] = 0
    return merges


def main():
    if sys.argv[1] == 'train':
        m = train(open(sys.argv[2]).read(), int(sys.argv[4]))
        json.dump(dict(merges=m), open(sys.argv[3], 'w'), ensure_ascii=False, indent=0)
        print(len(m), 'merges', m[:12], m[-6:])
    else:
        print(Tokenizer.load(sys.argv[2]).encode(sys.stdin.read()))


if __name__ == '__main__':
    main()
