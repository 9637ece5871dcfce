#!/usr/bin/env python3
"""Make the tokenizer and the packed token files.

  prepare.py CSV_GIT GRIMM_GIT OUT_DIR N_DOCS [WORKERS [MIX]]

Writes OUT_DIR/tokenizer.json, train.bin, val.bin (uint16 ids, documents end to
end, each starting with BOS) and tales-val.bin (held-out fairy-tale pieces).
Fairy tales are repeated so that they make about 17% of the training tokens.
MIX 2 and 3 are the finishing mixes (short tasks, fewer stories, 6% tales), written to train2.bin and train3.bin.
"""

import json, os, random, sys, time, zlib
import multiprocessing as mp
import numpy as np
import bpe, corpus


def gen(a):
    path, seed, n, mix = a
    tk = bpe.Tokenizer.load(path)
    r = random.Random(seed)
    out = []
    for _ in range(n):
        out.append(np.array(tk.encode(corpus.document(corpus.sample(r, mix=mix))), np.uint16))
    return out


def main():
    csv_git, grimm_git, out, n = sys.argv[1:4] + [int(sys.argv[4])]
    w = int(sys.argv[5]) if len(sys.argv) > 5 else 2
    mix = int(sys.argv[6]) if len(sys.argv) > 6 else 1
    os.makedirs(out, exist_ok=True)
    t0 = time.time()
    tokp = out + '/tokenizer.json'
    tales = corpus.fairytales(csv_git, grimm_git)
    rs = random.Random(3)
    tv = [t for t in tales if zlib.crc32(t[:300].encode()) % 25 == 0]
    tt = [t for t in tales if zlib.crc32(t[:300].encode()) % 25]
    print(
        len(tales), 'tale pieces', sum(map(len, tales)), 'chars', round(time.time() - t0, 1), 's', flush=True
    )
    if not os.path.exists(tokp):
        r = random.Random(11)
        text = '\0'.join(
            [corpus.document(corpus.sample(r)) for _ in range(12000)] + rs.sample(tt, min(len(tt), 900))
        )
        m = bpe.train(text, 2048)
        json.dump(dict(merges=m), open(tokp, 'w'), ensure_ascii=False, indent=0)
        print('tokenizer', round(time.time() - t0, 1), 's', flush=True)
    tk = bpe.Tokenizer.load(tokp)
    enc = lambda t: np.array([bpe.BOS] + tk.encode(t) + [bpe.EOS], np.uint16)
    with mp.Pool(w) as pool:
        docs = sum(pool.map(gen, [(tokp, 1000 * mix + i, 2000, mix) for i in range(n // 2000)], 1), [])
    synth = sum(map(len, docs))
    te = [enc(t) for t in tt]
    per = sum(map(len, te))
    share = {1: 0.17, 2: 0.06, 3: 0.06}[mix]
    reps = share / (1 - share) * synth / per
    rs.shuffle(te)
    docs += te * int(reps) + te[: int(len(te) * (reps % 1))]
    print(
        f'synthetic {synth} tokens in {n} docs, tales {per} tokens x {reps:.2f}',
        round(time.time() - t0, 1),
        's',
        flush=True,
    )
    rs.shuffle(docs)
    np.concatenate(docs).tofile(out + ('/train.bin' if mix == 1 else f'/train{mix}.bin'))
    if mix != 1:
        return
    r = random.Random(555)
    val = [np.array(tk.encode(corpus.document(corpus.sample(r, held=True))), np.uint16) for _ in range(600)]
    np.concatenate(val).tofile(out + '/val.bin')
    np.concatenate([enc(t) for t in tv]).tofile(out + '/tales-val.bin')
    print('done', round(time.time() - t0, 1), 's')


if __name__ == '__main__':
    main()
