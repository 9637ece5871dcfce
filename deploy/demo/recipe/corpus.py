#!/usr/bin/env python3
"""Curriculum generator for the Causeway demo models.

Everything the demo models know comes from here: small verifiable tasks in
DeepSeek chat format, a probabilistic story grammar, short conversations, and
(optionally) public-domain fairy tales.  Samples are drawn from a seeded RNG.

The held-out split is decided by a hash of the question (or of the story plan),
never by the RNG, so no held-out question can be drawn for training.

  corpus.py show [N]                 print N samples of each task
  corpus.py text OUT.txt N [SEED]    N training documents, separated by NUL
  corpus.py eval OUT.jsonl N [SEED]  N held-out prompts with expected answers
"""

import json, random, re, subprocess, sys, zlib
from storygen import story, story_request

BOS, EOS = '<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>'
USER, ASST = '<｜User｜>', '<｜Assistant｜>'

SYSTEMS = [
    'You are a helpful assistant.',
    'You are the Causeway demo model.',
    'Be brief and correct.',
    'You are a helpful assistant. Answer clearly.',
    'You are a friendly helper.',
]


def heldout(key):
    """True for about 1 in 20 keys, the same ones on every machine."""
    return zlib.crc32(('causeway:' + key).encode()) % 20 == 0


def think(body, ans):
    return '<think>\n' + body.strip() + '\n</think>\n\n' + ans


# ---------------------------------------------------------------- arithmetic
PLACES = ['ones', 'tens', 'hundreds']


def num(r, hi=999):
    """Numbers with 1, 2 and 3 digits all well represented."""
    lim = r.choice([9, 99, 99, 999, 999])
    return r.randint(0, min(lim, hi))


def add_steps(a, b):
    out, carry, i = [], 0, 0
    n = max(len(str(a)), len(str(b)))
    while i < n:
        x, y = a // 10**i % 10, b // 10**i % 10
        s = x + y + carry
        lhs = f'{x}+{y}' + (f'+{carry}' if carry else '')
        carry = s // 10
        out.append(f'{PLACES[i]}: {lhs}={s}, write {s % 10}' + (' carry 1' if carry else ''))
        i += 1
    if carry:
        out.append('then write 1')
    return '\n'.join(out)


def sub_steps(a, b):
    out, borrow = [], 0
    for i in range(len(str(a))):
        x, y = a // 10**i % 10, b // 10**i % 10
        t = x - borrow
        lhs = f'{x}-1={t}, ' if borrow else ''
        if t < y:
            out.append(f'{PLACES[i]}: {lhs}borrow, {t + 10}-{y}={t + 10 - y}, write {t + 10 - y}')
            borrow = 1
        else:
            out.append(f'{PLACES[i]}: {lhs}{t}-{y}={t - y}, write {t - y}')
            borrow = 0
    return '\n'.join(out)


def t_add(r):
    a, b = num(r), num(r)
    q = r.choice(
        [
            'What is {a} + {b}?',
            'Calculate {a} + {b}.',
            'Add {a} and {b}.',
            '{a} + {b} = ?',
            'What is the sum of {a} and {b}?',
            'How much is {a} plus {b}?',
            '{a}+{b}',
            'Please add {a} and {b}.',
        ]
    ).format(a=a, b=b)
    return q, think(add_steps(a, b), f'{a} + {b} = {a + b}'), str(a + b), f'add {a} {b}'


def t_sub(r):
    a, b = num(r), num(r)
    if a < b:
        a, b = b, a
    q = r.choice(
        [
            'What is {a} - {b}?',
            'Calculate {a} - {b}.',
            'Subtract {b} from {a}.',
            '{a} - {b} = ?',
            'How much is {a} minus {b}?',
            '{a}-{b}',
            'Take {b} away from {a}.',
        ]
    ).format(a=a, b=b)
    return q, think(sub_steps(a, b), f'{a} - {b} = {a - b}'), str(a - b), f'sub {a} {b}'


def t_mul(r):
    q = r.choice(
        [
            'What is {a} * {b}?',
            'What is {a} times {b}?',
            'Multiply {a} by {b}.',
            'Calculate {a} * {b}.',
            '{a} * {b} = ?',
        ]
    )
    if r.random() < 0.5:
        a, b = r.randint(2, 10), r.randint(2, 10)
        q = q.format(a=a, b=b)
        return q, f'{a} * {b} = {a * b}', str(a * b), 'mul ' + q
    a, b = r.randint(2, 9), r.randint(11, 99)
    q = q.format(a=a, b=b)
    t, o = b // 10 * 10, b % 10
    body = f'{b}={t}+{o}\n{a}*{t}={a * t}\n{a}*{o}={a * o}\n' + add_steps(a * t, a * o)
    return q, think(body, f'{a} * {b} = {a * b}'), str(a * b), f'mul {a} {b}'


def t_compare(r):
    a = num(r)
    b = r.choice([num(r), max(0, a + r.randint(-20, 20)), int(str(a)[::-1])])
    if a == b:
        b += 1
    k = r.randint(0, 3)
    key = f'cmp {k} {a} {b}'
    if k == 0:
        q = r.choice(
            [
                'Which is larger, {a} or {b}?',
                'Which number is bigger, {a} or {b}?',
                'Which is greater: {a} or {b}?',
            ]
        )
        m = max(a, b)
        ans = f'{m} is larger than {min(a, b)}.'
    elif k == 1:
        q = r.choice(['Which is smaller, {a} or {b}?', 'Which number is less, {a} or {b}?'])
        m = min(a, b)
        ans = f'{m} is smaller than {max(a, b)}.'
    elif k == 2:
        q = r.choice(['Is {a} greater than {b}?', 'Is {a} larger than {b}?'])
        m = 'Yes' if a > b else 'No'
        ans = f'Yes, {a} is greater than {b}.' if a > b else f'No, {a} is less than {b}.'
    else:
        q = r.choice(['Is {a} less than {b}?', 'Is {a} smaller than {b}?'])
        m = 'Yes' if a < b else 'No'
        ans = f'Yes, {a} is less than {b}.' if a < b else f'No, {a} is greater than {b}.'
    return q.format(a=a, b=b), ans, str(m), key


def t_evenodd(r):
    a = num(r)
    e = a % 2 == 0
    q = r.choice([f'Is {a} even or odd?', f'Is the number {a} odd or even?'])
    w = 'even' if e else 'odd'
    return q, f'{a} ends in {a % 10}, so it is {w}.', w, q


def t_numsort(r):
    n = r.randint(3, 5)
    xs = r.sample(range(1, 100), n)
    up = r.random() < 0.6
    q = (
        (
            r.choice(['Sort these numbers from smallest to largest: ', 'Put these numbers in order: '])
            if up
            else 'Sort these numbers from largest to smallest: '
        )
        + ', '.join(map(str, xs))
        + '.'
    )
    ys = ', '.join(map(str, sorted(xs, reverse=not up)))
    return q, ys, ys, q


NAMES_F = ['Anna', 'Lily', 'Mia', 'Rose', 'Emma', 'Sara', 'Nina', 'Clara', 'Ruby', 'Ella']
NAMES_M = ['Tom', 'Ben', 'Max', 'Sam', 'Leo', 'Jack', 'Finn', 'Otto', 'Noah', 'Hugo']
ITEMS = [
    'apples',
    'marbles',
    'shells',
    'books',
    'coins',
    'pencils',
    'cookies',
    'stones',
    'eggs',
    'pears',
    'stickers',
    'buttons',
]


def t_word(r):
    p, o = r.sample(NAMES_F + NAMES_M, 2)
    he = 'She' if p in NAMES_F else 'He'
    it = r.choice(ITEMS)
    k = r.randint(0, 3)
    a, b = r.randint(2, 49), r.randint(2, 49)
    if k == 0:
        q = (
            f'{p} has {a} {it}. '
            + r.choice([f'{o} gives {p} {b} more.', f'{he} finds {b} more.', f'{he} buys {b} more.'])
            + f' How many {it} does {p} have now?'
        )
        s, body = a + b, f'{a}+{b}\n' + add_steps(a, b)
    elif k == 1:
        if a <= b:
            a, b = b + 1, a
        q = (
            f'{p} has {a} {it}. '
            + r.choice([f'{he} gives {b} to {o}.', f'{he} loses {b} of them.', f'{he} sells {b} of them.'])
            + f' How many {it} does {p} have left?'
        )
        s, body = a - b, f'{a}-{b}\n' + sub_steps(a, b)
    elif k == 2:
        a, b = r.randint(2, 9), r.randint(2, 9)
        q = f'{p} has {a} bags with {b} {it} in each bag. How many {it} does {p} have?'
        s, body = a * b, f'{a}*{b}={a * b}'
    else:
        q = f'{p} has {a} {it} and {o} has {b} {it}. How many {it} do they have together?'
        s, body = a + b, f'{a}+{b}\n' + add_steps(a, b)
    end = {
        0: f'{p} has {s} {it} now.',
        1: f'{p} has {s} {it} left.',
        2: f'{p} has {s} {it}.',
        3: f'Together they have {s} {it}.',
    }[k]
    return q, think(body, end), str(s), q


# --------------------------------------------------------------------- logic
CLAIMS = [  # (text, truth as a function of speaker kind, other kind); {o} is the other's name
    ('{o} is a knight.', lambda s, o: o),
    ('{o} is a knave.', lambda s, o: not o),
    ('We are both knights.', lambda s, o: s and o),
    ('We are both knaves.', lambda s, o: not s and not o),
    ('We are the same kind.', lambda s, o: s == o),
    ('We are different kinds.', lambda s, o: s != o),
    ('At least one of us is a knave.', lambda s, o: not (s and o)),
    ('At least one of us is a knight.', lambda s, o: s or o),
    ('I am a knight.', lambda s, o: s),
]
KIND = {True: 'knight', False: 'knave'}


def t_knights(r):
    while True:
        a, b = r.sample(NAMES_F + NAMES_M, 2)
        (ca, fa), (cb, fb) = r.choice(CLAIMS), r.choice(CLAIMS)
        sols, lines = [], []
        for x in (True, False):
            for y in (True, False):
                ta, tb = fa(x, y), fb(y, x)
                ok = ta == x and tb == y
                if ok:
                    sols.append((x, y))
                lines.append(
                    f'{a} {KIND[x]}, {b} {KIND[y]}: {a} says {"true" if ta else "false"}, {b} says {"true" if tb else "false"}, {"this fits" if ok else "no"}'
                )
        if len(sols) == 1:
            break
    x, y = sols[0]
    q = r.choice(
        [
            'Knights always tell the truth and knaves always lie. ',
            'On an island, knights tell the truth and knaves lie. ',
        ]
    )
    q += f'{a} says: "{ca.format(o=b)}" {b} says: "{cb.format(o=a)}" ' + r.choice(
        ['Who is a knight and who is a knave?', f'What are {a} and {b}?']
    )
    ans = f'{a} is a {KIND[x]} and {b} is a {KIND[y]}.'
    return q, think('\n'.join(lines), ans), ans, f'kk {a} {b} {ca} {cb}'


# -------------------------------------------------------------- words, lists
WORDS = '''apple ball bear bee bell bird boat book box bread bridge brush cake candle car cat chair cheese cherry clock cloud coat corn cow
crown cup deer dog door dragon drum duck ear egg elephant eye farm feather field fire fish flag flower forest fox frog garden gate ghost goat
gold grape grass hand hat heart hen hill honey horse house ice island jam jar key king kite knife lake lamp leaf lemon lion map mask milk moon
mouse nest night nose oak ocean onion orange owl paper peach pear pencil pig plum pond queen rabbit rain ring river road robin rock rope rose sail
salt sand sea seed sheep ship shoe silver sky snail snow spoon star stone storm sun swan table tail tiger tower train tree turtle umbrella
valley violin wagon wall water whale wheel wind window wolf wood yarn zebra banana letter little summer winter pepper rubber mirror balloon'''.split()


def words(r, lo, hi):
    return r.sample(WORDS, r.randint(lo, hi))


def t_sort(r):
    ws = words(r, 3, 5)
    q = r.choice(
        [
            'Sort these words alphabetically: {l}.',
            'Put these words in alphabetical order: {l}.',
            'Sort this list: {l}.',
        ]
    ).format(l=', '.join(ws))
    a = ', '.join(sorted(ws))
    return q, a, a, q


def t_reverse(r):
    ws = words(r, 3, 5)
    q = r.choice(
        [
            'Reverse this list: {l}.',
            'Write these words in reverse order: {l}.',
            'Say this list backwards: {l}.',
        ]
    ).format(l=', '.join(ws))
    a = ', '.join(reversed(ws))
    return q, a, a, q


def t_pick(r):
    ws = words(r, 3, 5)
    k = r.randint(0, 2)
    w = ['first', 'second', 'last'][k]
    q = f'What is the {w} word in this list: ' + ', '.join(ws) + '?'
    a = ws[[0, 1, -1][k]]
    return q, f'The {w} word is {a}.', a, q


def t_count(r):
    w = r.choice(WORDS)
    k = r.randint(0, 2)
    if k == 0:
        q = r.choice(['How many letters are in the word {w}?', 'How many letters does {w} have?']).format(w=w)
        return (
            q,
            think(' '.join(f'{c}{i + 1}' for i, c in enumerate(w)), f'The word {w} has {len(w)} letters.'),
            str(len(w)),
            q,
        )
    if k == 1:
        c = r.choice(w) if r.random() < 0.85 else r.choice('aeiourst')
        n = 0
        out = []
        for ch in w:
            if ch == c:
                n += 1
                out.append(f'{ch}{n}')
            else:
                out.append(ch)
        q = r.choice(
            [
                'How many times does the letter {c} appear in {w}?',
                'How many {c} are in the word {w}?',
                'Count the letter {c} in {w}.',
            ]
        ).format(c=c, w=w)
        return (
            q,
            think(' '.join(out), f'The letter {c} appears {n} time{"" if n == 1 else "s"} in {w}.'),
            str(n),
            q,
        )
    q = r.choice(['Spell the word {w}.', 'How do you spell {w}?']).format(w=w)
    a = '-'.join(w)
    return q, a, a, q


SAY = [
    'hello',
    'hooray',
    'good morning',
    'rain',
    'the moon',
    'yes',
    'ding dong',
    'tick tock',
    'I can do it',
    'happy day',
    'blue bird',
    'la la',
    'thank you',
    'quack',
    'go fox go',
    'red apple',
] + WORDS[:60]
COUNTS = {2: 'two', 3: 'three', 4: 'four', 5: 'five'}


def t_say(r):
    w = r.choice(SAY)
    n = r.randint(2, 5)
    q = r.choice(
        ['Say {w} {n} times.', 'Please say {w} {n} times.', 'Repeat {w} {n} times.', 'Write {w} {n} times.']
    ).format(w=w, n=COUNTS[n])
    a = ' '.join([w] * n)
    return q, a, a, q


DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
MONTHS = 'January February March April May June July August September October November December'.split()


def t_calendar(r):
    L, kind = (DAYS, 'day') if r.random() < 0.5 else (MONTHS, 'month')
    i = r.randrange(len(L))
    n = len(L)
    k = r.randint(0, 4)
    if k == 0:
        q, a = r.choice([f'What {kind} comes after {L[i]}?', f'Which {kind} follows {L[i]}?']), L[(i + 1) % n]
        s = f'{a} comes after {L[i]}.'
    elif k == 1:
        q, a = (
            r.choice([f'What {kind} comes before {L[i]}?', f'Which {kind} is just before {L[i]}?']),
            L[(i - 1) % n],
        )
        s = f'{a} comes before {L[i]}.'
    elif k == 2:
        m = r.randint(2, 5)
        q = f'What {kind} is {COUNTS[m]} {kind}s after {L[i]}?'
        a = L[(i + m) % n]
        return (
            q,
            think(
                ' > '.join(L[(i + j) % n] for j in range(m + 1)), f'{a} is {COUNTS[m]} {kind}s after {L[i]}.'
            ),
            a,
            q,
        )
    elif k == 3:
        if kind == 'day':
            q, a = f'If today is {L[i]}, what day is tomorrow?', L[(i + 1) % n]
            s = f'Tomorrow is {a}.'
        else:
            q, a = f'What number is the month {L[i]}?', str(i + 1)
            s = f'{L[i]} is month number {a}.'
    else:
        m = r.randint(2, 4)
        q = f'Name the {COUNTS[m]} {kind}s after {L[i]}.'
        s = a = ', '.join(L[(i + j) % n] for j in range(1, m + 1))
    return q, s, a, q


# --------------------------------------------------------------------- facts
CAPITALS = dict(
    x.split(':')
    for x in '''France:Paris|Germany:Berlin|Italy:Rome|Spain:Madrid|Portugal:Lisbon|Poland:Warsaw|Austria:Vienna|Hungary:Budapest|Greece:Athens|Norway:Oslo|Sweden:Stockholm|Finland:Helsinki|Denmark:Copenhagen|Ireland:Dublin|England:London|Scotland:Edinburgh|Belgium:Brussels|the Netherlands:Amsterdam|Switzerland:Bern|Russia:Moscow|Ukraine:Kyiv|Turkey:Ankara|Egypt:Cairo|Kenya:Nairobi|Ethiopia:Addis Ababa|Ghana:Accra|Nigeria:Abuja|Morocco:Rabat|China:Beijing|Japan:Tokyo|India:New Delhi|Thailand:Bangkok|Vietnam:Hanoi|South Korea:Seoul|Indonesia:Jakarta|Australia:Canberra|New Zealand:Wellington|Canada:Ottawa|the United States:Washington|Mexico:Mexico City|Cuba:Havana|Brazil:Brasilia|Argentina:Buenos Aires|Chile:Santiago|Peru:Lima|Colombia:Bogota|Iceland:Reykjavik|Iran:Tehran|Iraq:Baghdad|Israel:Jerusalem|Nepal:Kathmandu|Mongolia:Ulaanbaatar'''.split(
        '|'
    )
)

FACTS = [tuple(x.split('|')) for x in '''How many legs does a spider have|eight|A spider has eight legs.
How many legs does an insect have|six|An insect has six legs.
How many legs does a dog have|four|A dog has four legs.
How many wheels does a bicycle have|two|A bicycle has two wheels.
How many wheels does a car have|four|A car has four wheels.
How many days are in a week|seven|A week has seven days.
How many months are in a year|twelve|A year has twelve months.
How many hours are in a day|24|A day has 24 hours.
How many minutes are in an hour|60|An hour has 60 minutes.
How many seconds are in a minute|60|A minute has 60 seconds.
How many sides does a triangle have|three|A triangle has three sides.
How many sides does a square have|four|A square has four sides.
How many sides does a hexagon have|six|A hexagon has six sides.
How many planets go around the sun|eight|Eight planets go around the sun.
How many letters are in the alphabet|26|The English alphabet has 26 letters.
How many fingers are on one hand|five|One hand has five fingers.
How many seasons are in a year|four|A year has four seasons.
How many strings does a violin have|four|A violin has four strings.
How many continents are there|seven|There are seven continents.
What color is grass|green|Grass is green.
What color is the sky on a clear day|blue|The sky is blue on a clear day.
What color is snow|white|Snow is white.
What color is a ripe banana|yellow|A ripe banana is yellow.
What color is coal|black|Coal is black.
What color is a carrot|orange|A carrot is orange.
What color is blood|red|Blood is red.
What color do you get from blue and yellow|green|Blue and yellow make green.
What color do you get from red and yellow|orange|Red and yellow make orange.
What color do you get from red and blue|purple|Red and blue make purple.
What sound does a cow make|moo|A cow says moo.
What sound does a cat make|meow|A cat says meow.
What sound does a dog make|woof|A dog says woof.
What sound does a duck make|quack|A duck says quack.
What sound does a sheep make|baa|A sheep says baa.
What sound does an owl make|hoot|An owl says hoot.
What sound does a pig make|oink|A pig says oink.
What is a baby dog called|puppy|A baby dog is called a puppy.
What is a baby cat called|kitten|A baby cat is called a kitten.
What is a baby cow called|calf|A baby cow is called a calf.
What is a baby sheep called|lamb|A baby sheep is called a lamb.
What is a baby horse called|foal|A baby horse is called a foal.
What is a baby frog called|tadpole|A baby frog is called a tadpole.
What is a baby bear called|cub|A baby bear is called a cub.
What is a baby swan called|cygnet|A baby swan is called a cygnet.
What is frozen water called|ice|Frozen water is called ice.
What do bees make|honey|Bees make honey.
What do cows give us|milk|Cows give us milk.
What do sheep give us|wool|Sheep give us wool.
What do hens lay|eggs|Hens lay eggs.
What do caterpillars turn into|butterflies|Caterpillars turn into butterflies.
What do plants need to grow|water|Plants need water, light and air to grow.
What do pandas eat|bamboo|Pandas eat bamboo.
Where do fish live|water|Fish live in water.
Where do birds lay their eggs|nest|Birds lay their eggs in a nest.
Where does the sun rise|east|The sun rises in the east.
Where does the sun set|west|The sun sets in the west.
Where do penguins live|south|Penguins live in the far south.
What is the largest planet|Jupiter|The largest planet is Jupiter.
What is the smallest planet|Mercury|The smallest planet is Mercury.
What planet do we live on|Earth|We live on the planet Earth.
Which planet is called the red planet|Mars|Mars is called the red planet.
Which planet has bright rings|Saturn|Saturn has bright rings.
What goes around the Earth|moon|The moon goes around the Earth.
What is the star nearest to us|sun|The star nearest to us is the sun.
What is the largest ocean|Pacific|The largest ocean is the Pacific.
What is the largest animal|blue whale|The largest animal is the blue whale.
What is the tallest animal|giraffe|The tallest animal is the giraffe.
What is the fastest land animal|cheetah|The fastest land animal is the cheetah.
What is the tallest mountain|Everest|The tallest mountain is Mount Everest.
What is the longest river in Africa|Nile|The longest river in Africa is the Nile.
What is the largest desert in Africa|Sahara|The largest desert in Africa is the Sahara.
What is the largest country|Russia|The largest country is Russia.
What is the opposite of hot|cold|The opposite of hot is cold.
What is the opposite of big|small|The opposite of big is small.
What is the opposite of up|down|The opposite of up is down.
What is the opposite of day|night|The opposite of day is night.
What is the opposite of happy|sad|The opposite of happy is sad.
What is the opposite of fast|slow|The opposite of fast is slow.
What is the opposite of old|young|The opposite of old is young.
What is the opposite of wet|dry|The opposite of wet is dry.
What is the opposite of open|closed|The opposite of open is closed.
What is the opposite of light|dark|The opposite of light is dark.
What is the opposite of loud|quiet|The opposite of loud is quiet.
What is the opposite of full|empty|The opposite of full is empty.
What is the opposite of early|late|The opposite of early is late.
What is the opposite of strong|weak|The opposite of strong is weak.
Who wrote Hamlet|Shakespeare|Hamlet was written by William Shakespeare.
Who wrote The Little Mermaid|Andersen|The Little Mermaid was written by Hans Christian Andersen.
Who painted the Mona Lisa|Leonardo|The Mona Lisa was painted by Leonardo da Vinci.
Who found the law of gravity|Newton|The law of gravity was found by Isaac Newton.
Who made the theory of relativity|Einstein|The theory of relativity was made by Albert Einstein.
What gas do we need to breathe|oxygen|We need oxygen to breathe.
What metal does a magnet pull|iron|A magnet pulls iron.
What is bread made from|flour|Bread is made from flour.
What is cheese made from|milk|Cheese is made from milk.
What is paper made from|wood|Paper is made from wood.
What is glass made from|sand|Glass is made from sand.
What is wine made from|grapes|Wine is made from grapes.
What is the season after winter|spring|The season after winter is spring.
What is the season after summer|autumn|The season after summer is autumn.
What is the hottest season|summer|The hottest season is summer.
What is the coldest season|winter|The coldest season is winter.
What do we use to cut paper|scissors|We use scissors to cut paper.
What do we use to see far away|telescope|We use a telescope to see far away.
What do we use to tell the time|clock|We use a clock to tell the time.
What do you open a lock with|key|You open a lock with a key.
What does a baker make|bread|A baker makes bread.
What does a doctor do|sick|A doctor helps sick people.
What does a farmer do|food|A farmer grows food.
What language do people speak in France|French|People in France speak French.
What language do people speak in Brazil|Portuguese|People in Brazil speak Portuguese.
What language do people speak in Mexico|Spanish|People in Mexico speak Spanish.
What language do people speak in Austria|German|People in Austria speak German.
What money do people use in Japan|yen|People in Japan use the yen.
What money do people use in Germany|euro|People in Germany use the euro.
At what temperature does water freeze|0 degrees|Water freezes at 0 degrees Celsius.
At what temperature does water boil|100 degrees|Water boils at 100 degrees Celsius.
What part of the body pumps blood|heart|The heart pumps blood.
What part of the body do we think with|brain|We think with the brain.
What do we hear with|ears|We hear with our ears.
What do we smell with|nose|We smell with the nose.'''.split('\n')]

PREF = [
    '{q}?',
    '{q}?',
    'Please tell me: {l}?',
    'I have a question. {q}?',
    'Do you know this? {q}?',
    'Quick question: {l}?',
    'Tell me, {l}?',
    'Answer this: {l}?',
]


def t_fact(r):
    q0, key, ans = r.choice(FACTS)
    q = r.choice(PREF).format(q=q0, l=q0[0].lower() + q0[1:])
    return q, ans, key, q


def t_capital(r):
    c = r.choice(list(CAPITALS))
    v = CAPITALS[c]
    if r.random() < 0.25:
        q = r.choice(
            [
                '{v} is the capital of which country?',
                'Which country has the capital {v}?',
                'Of what country is {v} the capital?',
            ]
        ).format(v=v)
        return q, f'{v} is the capital of {c}.', c, q
    q = r.choice(
        [
            'What is the capital of {c}?',
            'Which city is the capital of {c}?',
            'Tell me the capital of {c}.',
            'Name the capital of {c}.',
            'Do you know the capital of {c}?',
            'Capital of {c}?',
            "What is the name of the capital city of {c}?",
        ]
    ).format(c=c)
    return q, f'The capital of {c} is {v}.', v, q


TRANS = [
    x.split()
    for x in '''cat chat gato Katze|dog chien perro Hund|house maison casa Haus|water eau agua Wasser|bread pain pan Brot|milk lait leche Milch|book livre libro Buch|sun soleil sol Sonne|moon lune luna Mond|tree arbre arbol Baum|fish poisson pez Fisch|bird oiseau pajaro Vogel|red rouge rojo rot|green vert verde gruen|black noir negro schwarz|white blanc blanco weiss|one un uno eins|two deux dos zwei|three trois tres drei|hello bonjour hola hallo|thanks merci gracias danke|friend ami amigo Freund|mother mere madre Mutter|father pere padre Vater|night nuit noche Nacht|day jour dia Tag|apple pomme manzana Apfel|fire feu fuego Feuer|king roi rey Koenig|horse cheval caballo Pferd|yes oui si ja|no non no nein|good bon bueno gut|big grand grande gross|small petit pequeno klein|heart coeur corazon Herz'''.split(
        '|'
    )
]
LANGS = ['French', 'Spanish', 'German']


def t_translate(r):
    w = r.choice(TRANS)
    k = r.randint(1, 3)
    l = LANGS[k - 1]
    if r.random() < 0.25:
        q = r.choice(['What does {f} mean in {l}?', 'What is the English word for the {l} word {f}?']).format(
            f=w[k], l=l
        )
        return q, f'The {l} word {w[k]} means {w[0]}.', w[0], q
    q = r.choice(
        [
            'How do you say {w} in {l}?',
            'Translate {w} to {l}.',
            'What is the {l} word for {w}?',
            'What is {w} in {l}?',
        ]
    ).format(w=w[0], l=l)
    return q, f'The {l} word for {w[0]} is {w[k]}.', w[k], q


# ------------------------------------------------------------ conversation
IDENT = [
    (
        [
            'Who are you?',
            'What are you?',
            'Tell me about yourself.',
            'Who am I talking to?',
            'Can you introduce yourself?',
        ],
        ['I am the Causeway demo model, running partly on this device and partly on expert servers.'],
    ),
    (
        ['What is your name?', 'Do you have a name?', 'What should I call you?'],
        ['I am the Causeway demo model. You can call me Causeway.'],
    ),
    (
        ['Where do you run?', 'Where are you running?', 'What computer are you on?'],
        ['Part of me runs on this device and part of me runs on expert servers.'],
    ),
    (
        ['What can you do?', 'What can you help me with?', 'How can you help?', 'Help'],
        [
            'I can add and subtract numbers, solve small puzzles, sort words, answer simple questions and tell stories.'
        ],
    ),
    (
        ['Are you a person?', 'Are you human?', 'Are you a robot?'],
        ['No, I am a small language model. I am the Causeway demo model.'],
    ),
    (
        ['How big are you?', 'Are you a large model?'],
        ['I am a very small model, with a few million parameters.'],
    ),
    (
        ['What is an expert server?', 'What do the expert servers do?'],
        ['An expert server holds some of my experts and computes them when this device asks.'],
    ),
    (
        [
            'What happens if the servers are gone?',
            'What happens without the servers?',
            'Can you work offline?',
        ],
        ['Then a smaller model on this device answers in my place. It knows less than I do.'],
    ),
    (
        ['What is Causeway?', 'Tell me about Causeway.'],
        ['Causeway is a system that splits a language model between your device and expert servers.'],
    ),
    (
        ['Who made you?', 'Who built you?', 'Who trained you?'],
        ['I was trained for the Causeway project as a small demo.'],
    ),
]
SMALL = [
    (
        ['Hello!', 'Hi!', 'Hello', 'Hi there!', 'Hey!', 'Good day!'],
        ['Hello! How can I help you?', 'Hello! What would you like to do today?'],
    ),
    (['Good morning!', 'Good morning'], ['Good morning! How can I help you?']),
    (['Good evening!', 'Good evening'], ['Good evening! How can I help you?']),
    (
        ['How are you?', 'How are you today?', 'How is it going?'],
        ['I am fine, thank you. How can I help you?'],
    ),
    (
        ['Thank you!', 'Thanks!', 'Thanks a lot!', 'Thank you very much.'],
        ['You are welcome!', 'You are welcome! Is there anything else?'],
    ),
    (['Goodbye!', 'Bye!', 'See you later!', 'Good night!'], ['Goodbye! Have a nice day.', 'Goodbye!']),
    (
        ['I am bored.', 'I have nothing to do.'],
        ['I can tell you a story, or we can do some sums. What would you like?'],
    ),
    (
        ['I am sad.', 'I feel sad today.'],
        ['I am sorry to hear that. Maybe a story will make you feel better.'],
    ),
    (['I am happy!', 'I feel great today!'], ['That is good to hear! What would you like to do?']),
    (['Can you help me?', 'I need help.'], ['Of course! What do you need help with?']),
    (['That is right.', 'Correct!', 'Well done!', 'Good job!'], ['Thank you! Is there anything else?']),
    (
        ['Tell me a joke.', 'Do you know a joke?', 'Say something funny.'],
        [
            'Why did the clock go to school? Because it wanted to learn about time.',
            'What kind of key opens a banana? A monkey.',
            'Why was the book so sad? It had too many problems.',
        ],
    ),
]
LIKE = [
    'apples',
    'cats',
    'dogs',
    'music',
    'books',
    'rain',
    'the sea',
    'stories',
    'cake',
    'trains',
    'birds',
    'winter',
    'summer',
    'math',
    'puzzles',
    'flowers',
]


def t_chat(r):
    k = r.random()
    if k < 0.5:
        qs, As = r.choice(IDENT)
    elif k < 0.9:
        qs, As = r.choice(SMALL)
    else:
        x = r.choice(LIKE)
        n = r.choice(NAMES_F + NAMES_M)
        qs, As = r.choice(
            [
                ([f'Do you like {x}?'], [f'I am only a model, but I like to talk about {x}.']),
                ([f'I like {x}.', f'I love {x}!'], [f'That is nice! What do you like about {x}?']),
                (
                    [f'My name is {n}.', f'I am {n}.', f'Hi, I am {n}.'],
                    [f'Hello, {n}! Nice to meet you. How can I help you?'],
                ),
            ]
        )
    q = r.choice(qs)
    a = r.choice(As)
    return q, a, (a if len(As) == 1 else ''), 'chat ' + q


def memory_turns(r):
    """Two or three turns where the last needs something said before."""
    n = r.choice(NAMES_F + NAMES_M)
    k = r.randint(0, 2)
    if k == 0:
        q1, a1, q2, a2, e = (
            r.choice([f'My name is {n}.', f'I am {n}.', f'Hi, I am {n}.']),
            f'Hello, {n}! Nice to meet you. How can I help you?',
            r.choice(['What is my name?', 'Do you remember my name?', 'Who am I?']),
            f'Your name is {n}.',
            n,
        )
    elif k == 1:
        x = r.choice(LIKE)
        q1, a1, q2, a2, e = (
            r.choice([f'I like {x}.', f'I love {x}!']),
            f'That is nice! What do you like about {x}?',
            r.choice(['What do I like?', 'Do you remember what I like?']),
            f'You like {x}.',
            x,
        )
    else:
        v = r.randint(2, 99)
        q1, a1, q2, a2, e = (
            f'Remember the number {v}.',
            f'I will remember the number {v}.',
            r.choice(['Which number did I give you?', 'What was the number?']),
            f'The number was {v}.',
            str(v),
        )
    mid = []
    if r.random() < 0.4:
        m = (t_fact, t_capital, t_calendar)[r.randint(0, 2)](r)
        mid = [(m[0], strip_think(m[1]))]
    return [(q1, a1)] + mid, q2, a2, e, f'mem {q1} {q2}'


def strip_think(a):
    return a.split('</think>')[-1].lstrip('\n')


def t_tellstory(r):
    q, s, key = story_request(r)
    return q, s, '', key


# ---------------------------------------------------------------- sampling
TASKS = {  # name: (generator, share of documents)
    'add': (t_add, 15),
    'sub': (t_sub, 12),
    'mul': (t_mul, 5),
    'compare': (t_compare, 4),
    'evenodd': (t_evenodd, 1.5),
    'numsort': (t_numsort, 3),
    'word': (t_word, 6),
    'knights': (t_knights, 8),
    'sort': (t_sort, 6),
    'reverse': (t_reverse, 4),
    'pick': (t_pick, 2),
    'count': (t_count, 6),
    'say': (t_say, 2.5),
    'calendar': (t_calendar, 3.5),
    'fact': (t_fact, 7),
    'capital': (t_capital, 5),
    'translate': (t_translate, 4.5),
    'chat': (t_chat, 6),
    'memory': (None, 3),
    'session': (None, 4),
    'tellstory': (t_tellstory, 14),
    'story': (None, 10),
}
# The finishing mix: fewer stories, more of the short tasks
MIX2 = dict(
    add=12,
    sub=14,
    mul=9,
    compare=7,
    evenodd=1.5,
    numsort=6,
    word=8,
    knights=6,
    sort=11,
    reverse=9,
    pick=4,
    count=10,
    say=5,
    calendar=8,
    fact=13,
    capital=8,
    translate=8,
    chat=5,
    memory=2,
    session=2,
    tellstory=4.5,
    story=2.5,
)
# The last mix: more of what was still weak
MIX3 = dict(
    add=9,
    sub=14,
    mul=6,
    compare=16,
    evenodd=1,
    numsort=9,
    word=6,
    knights=5,
    sort=13,
    reverse=5,
    pick=3,
    count=13,
    say=3,
    calendar=9,
    fact=10,
    capital=6,
    translate=8,
    chat=4,
    memory=2,
    session=2,
    tellstory=10,
    story=4,
)
NAMES = list(TASKS)
WEIGHTS = {1: [TASKS[n][1] for n in NAMES], 2: [MIX2[n] for n in NAMES], 3: [MIX3[n] for n in NAMES]}


def prompt(system, turns, q):
    return BOS + system + ''.join(f'{USER}{u}{ASST}{a}{EOS}' for u, a in turns) + USER + q + ASST


def sample(r, task=None, held=False, mix=1):
    """One document: dict(task, prompt, answer, expect). Raw stories have prompt == BOS."""
    name = task or r.choices(NAMES, WEIGHTS[mix])[0]
    while True:
        if name == 'story':
            s, key = story(r)
            if heldout(key) != held:
                continue
            return dict(task=name, prompt=BOS, answer=s, expect='')
        turns = []
        if name == 'session':  # a longer talk over many subjects
            turns = [history_turn(r) for _ in range(r.randint(2, 8))]
            d = sample(r, r.choice(LAST), held)
            return dict(
                d,
                task=name,
                prompt=BOS
                + prompt('', turns, '')[len(BOS) : -len(USER + ASST)]
                + USER
                + d['prompt'].split(USER)[-1],
            )
        if name == 'memory':
            turns, q, a, e, key = memory_turns(r)
        else:
            q, a, e, key = TASKS[name][0](r)
        # chat phrasings are few: identity answers are meant to be known, so none are withheld
        if name != 'chat' and heldout(key) != held:
            continue
        system = r.choice(SYSTEMS) if r.random() < 0.3 else ''
        if not turns and r.random() < 0.12:
            turns = [history_turn(r)]  # an unrelated earlier turn
        return dict(task=name, prompt=prompt(system, turns, q), answer=a, expect=e)


HISTORY = [
    'chat',
    'chat',
    'fact',
    'capital',
    'say',
    'calendar',
    'translate',
    'compare',
    'sort',
    'reverse',
    'evenodd',
    'pick',
    'tellstory',
]
LAST = [
    'add',
    'sub',
    'word',
    'chat',
    'fact',
    'capital',
    'sort',
    'reverse',
    'knights',
    'count',
    'translate',
    'compare',
    'tellstory',
]


def history_turn(r):
    """A finished turn without reasoning (DeepSeek's template drops reasoning from earlier turns)."""
    while True:
        o = r.choice(HISTORY)
        q, a, _, key = TASKS[o][0](r)
        if '</think>' not in a and (o == 'chat' or not heldout(key)):
            return q, a


def document(d):
    return d['prompt'] + d['answer'] + EOS


# ------------------------------------------------- public-domain fairy tales
ASCII = str.maketrans(
    {
        '“': '"',
        '”': '"',
        '‘': "'",
        '’': "'",
        '—': '-',
        '–': '-',
        '…': '...',
        'é': 'e',
        'è': 'e',
        'æ': 'ae',
        'ö': 'o',
        'ü': 'u',
        'ä': 'a',
        'à': 'a',
        'ê': 'e',
        'ï': 'i',
        'ç': 'c',
        '\xa0': ' ',
        'Æ': 'Ae',
        'ø': 'o',
        'å': 'a',
        'ô': 'o',
        'î': 'i',
        'â': 'a',
        'ñ': 'n',
        'ë': 'e',
    }
)


def clean(t):
    t = t.translate(ASCII)
    t = ''.join(c for c in t if c == '\n' or 32 <= ord(c) < 127)
    t = re.sub(r'[ \t]+', ' ', t)
    t = re.sub(r' ?\n ?', '\n', t)
    t = re.sub(r'\s+([.,;:!?])', r'\1', t)  # tokenised punctuation in the csv texts
    t = re.sub(r"\s+'\s?(s|t|ll|re|ve|m|d)\b", r"'\1", t)
    t = re.sub(r"n 't\b", "n't", t)
    return t.strip()


def fairytales(csv_git, grimm_git, chunk=1500):
    """Story text only, cut at paragraph ends into pieces of about `chunk` characters."""
    import csv, io

    git = lambda d, *a: subprocess.run(
        ['git', '--git-dir', d, *a], capture_output=True, check=True
    ).stdout.decode('utf-8', 'replace')
    docs = []
    names = [
        n
        for n in git(csv_git, 'ls-tree', '-r', '--name-only', 'HEAD').split('\n')
        if n.startswith('data-by-train-split/section-stories/all/') and n.endswith('.csv')
    ]
    seen = set()
    for n in names:
        try:
            rows = list(csv.DictReader(io.StringIO(git(csv_git, 'show', 'HEAD:' + n))))
        except Exception:
            continue
        if not rows or 'text' not in rows[0]:
            continue
        paras = [clean(x['text']) for x in rows if x.get('text')]
        h = zlib.crc32(paras[0][:200].encode())
        if h in seen:
            continue
        seen.add(h)
        docs.append(paras)
    t = git(grimm_git, 'show', 'HEAD:2591.txt').replace('\r', '')
    i, j = t.find('*** START'), t.find('*** END')
    t = t[t.find('\n', i) : j if j > 0 else None]
    body = t[t.rfind('THE GOLDEN BIRD', 0, 20000) :]
    for tale in re.split(r'\n{3,}', body):
        paras = [clean(p.replace('\n', ' ')) for p in tale.split('\n\n')]
        paras = [p for p in paras if len(p) > 40]
        if paras:
            docs.append(paras)
    out = []
    for paras in docs:
        cur = ''
        for p in paras:
            if cur and len(cur) + len(p) > chunk:
                out.append(cur)
                cur = ''
            cur += ('\n' if cur else '') + p
        if cur:
            out.append(cur)
    return out


def main():
    cmd = sys.argv[1] if len(sys.argv) > 1 else 'show'
    if cmd == 'show':
        r = random.Random(5)
        for n in NAMES:
            for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 2):
                d = sample(r, n)
                print(f'--- {n} [{d["expect"]}]\n{document(d)}')
    elif cmd == 'text':
        r = random.Random(int(sys.argv[4]) if len(sys.argv) > 4 else 1)
        with open(sys.argv[2], 'w') as f:
            for _ in range(int(sys.argv[3])):
                f.write(document(sample(r)) + '\0')
    elif cmd == 'eval':
        r = random.Random(int(sys.argv[4]) if len(sys.argv) > 4 else 777)
        names = [n for n in NAMES if n not in ('story', 'tellstory', 'session', 'chat')] + ['chat']
        seen = set()
        n = int(sys.argv[3])
        i = 0
        with open(sys.argv[2], 'w') as f:
            while len(seen) < n:
                t = names[i % len(names)]
                i += 1
                d = sample(r, t, held=(t != 'chat'))
                if d['prompt'] in seen or not d['expect']:
                    if i > 50 * n:
                        break
                    continue
                seen.add(d['prompt'])
                f.write(
                    json.dumps(
                        dict(task=t, prompt=d['prompt'], expect=d['expect'], reference=d['answer']),
                        ensure_ascii=False,
                    )
                    + '\n'
                )


if __name__ == '__main__':
    main()
