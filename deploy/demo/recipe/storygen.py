"""Probabilistic story grammar for the demo corpus.

A story = opening + trait + (wish or trouble) + failed try + helper with a line
of speech + solution + feeling + moral.  Each trouble brings its own tries and
solutions, so the parts always fit together; names, places, things and pronouns
stay the same through the whole story.
"""

import zlib

ANIMALS = [
    'fox',
    'rabbit',
    'bear',
    'mouse',
    'owl',
    'frog',
    'turtle',
    'hedgehog',
    'squirrel',
    'duck',
    'goose',
    'cat',
    'dog',
    'pig',
    'lamb',
    'goat',
    'deer',
    'beaver',
    'crow',
    'swan',
    'wolf',
    'lion',
    'tiger',
    'elephant',
    'monkey',
    'donkey',
    'sparrow',
    'badger',
    'otter',
    'snail',
]
FOLK = [
    ('girl', 'f'),
    ('boy', 'm'),
    ('princess', 'f'),
    ('prince', 'm'),
    ('shepherd', 'm'),
    ('miller', 'm'),
    ('baker', 'm'),
    ('fisherman', 'm'),
    ('tailor', 'm'),
    ('queen', 'f'),
    ('king', 'm'),
    ('old woman', 'f'),
    ('old man', 'm'),
    ('farmer', 'm'),
    ('weaver', 'f'),
    ('giant', 'm'),
    ('dragon', 'm'),
    ('fairy', 'f'),
]
HER = [
    'Anna',
    'Lily',
    'Mia',
    'Rose',
    'Emma',
    'Sara',
    'Nina',
    'Clara',
    'Ruby',
    'Ella',
    'Pip',
    'Dora',
    'Tilda',
    'Greta',
    'Wren',
]
HIM = [
    'Tom',
    'Ben',
    'Max',
    'Sam',
    'Leo',
    'Jack',
    'Finn',
    'Otto',
    'Noah',
    'Hugo',
    'Rufus',
    'Felix',
    'Bruno',
    'Oskar',
    'Milo',
]
TRAITS = {
    'brave': 'was not afraid of anything',
    'kind': 'always helped others',
    'clever': 'could solve any riddle',
    'lazy': 'liked to sleep until noon',
    'curious': 'asked questions all day long',
    'shy': 'did not like to speak to strangers',
    'proud': 'thought that nobody was better',
    'gentle': 'never hurt even a fly',
    'greedy': 'always wanted more',
    'lonely': 'had no one to play with',
    'honest': 'never told a lie',
    'cheerful': 'sang from morning to night',
    'patient': 'could wait for a very long time',
    'careless': 'often lost things',
    'hungry': 'thought about food all day',
    'poor': 'had only one coat and one bowl',
    'quiet': 'listened more than other folk',
    'stubborn': 'never gave up',
}
PLACES = [
    ('in', 'a small village by the sea'),
    ('in', 'a deep green forest'),
    ('on', 'a hill above the river'),
    ('in', 'a house at the edge of the wood'),
    ('in', 'a quiet valley'),
    ('near', 'a wide lake'),
    ('in', 'a cottage with a red door'),
    ('on', 'a farm far from the town'),
    ('under', 'the roots of an old oak tree'),
    ('in', 'a castle on a tall rock'),
    ('beside', 'an old stone bridge'),
    ('in', 'a land where it always snowed'),
    ('on', 'a little island'),
    ('behind', 'the mill'),
    ('at', 'the foot of a blue mountain'),
    ('in', 'a garden full of roses'),
]
HELPERS = [
    ('an old owl', 'the owl', 'f'),
    ('a tiny ant', 'the ant', 'm'),
    ('a wise turtle', 'the turtle', 'm'),
    ('a white horse', 'the horse', 'f'),
    ('a little bird', 'the bird', 'f'),
    ('an old woman', 'the old woman', 'f'),
    ('a young shepherd', 'the shepherd', 'm'),
    ('a gray mouse', 'the mouse', 'f'),
    ('a friendly giant', 'the giant', 'm'),
    ('a green frog', 'the frog', 'm'),
    ('a silver fish', 'the fish', 'f'),
    ('a busy bee', 'the bee', 'f'),
    ('a black crow', 'the crow', 'm'),
    ('a miller', 'the miller', 'm'),
    ('a red squirrel', 'the squirrel', 'm'),
    ('a small fairy', 'the fairy', 'f'),
    ('a traveling tailor', 'the tailor', 'm'),
    ('a gentle deer', 'the deer', 'f'),
]
GIFTS = [
    'a golden key',
    'a silver bell',
    'a warm blanket',
    'a basket of apples',
    'a blue stone',
    'a magic feather',
    'a loaf of bread',
    'a pot of honey',
    'a small lamp',
    'a long rope',
    'a red ribbon',
    'a wooden flute',
]
TREASURES = [
    'ring',
    'crown',
    'ball',
    'key',
    'doll',
    'hat',
    'bell',
    'book',
    'kite',
    'violin',
    'watch',
    'necklace',
]
HIDING = [
    'under a big leaf',
    'in the long grass',
    'at the bottom of the well',
    'behind a round stone',
    'in an empty nest',
    'inside a hollow tree',
    'in the pocket of an old coat',
    'between two roots',
]
FOODS = ['soup', 'bread', 'cake', 'apple pie', 'honey', 'porridge', 'cheese', 'nuts']

# Every trouble: (name, wish-or-trouble lines, failed tries, advice in speech, solutions, closing fact)
# Slots: {N} name, {h} he/she, {H} He/She, {m} him/her, {s} his/her, {w} helper, {W} Helper, {t} treasure, {d} hiding place, {f} food
TROUBLES = [
    (
        'lost',
        [
            'One day {N} lost {s} {t}.',
            'One morning {s} favorite {t} was gone.',
            'One evening {N} saw that {s} {t} was missing.',
        ],
        [
            '{H} looked in every corner, but the {t} was not there.',
            '{H} searched the whole day and found nothing.',
            '{H} asked everyone in the place, but nobody had seen it.',
        ],
        [
            'Think of the last place where you played',
            'Go back along the path you came by',
            'Look low as well as high',
            'Walk slowly and use your eyes',
        ],
        [
            '{N} did as {w} said, and there was the {t}, {d}.',
            'So they looked together, and soon they found the {t} {d}.',
            '{N} went back step by step. At last {h} saw the {t} {d}.',
        ],
        ['From then on {N} took good care of {s} {t}.', 'After that day the {t} was never lost again.'],
    ),
    (
        'river',
        [
            'One day the rain fell and the river grew so wide that {N} could not get home.',
            'One morning the bridge over the river was gone, and {N} had to cross.',
            'On the way home {N} came to a deep river.',
        ],
        [
            '{H} tried to jump, but the water was too wide.',
            '{H} tried to swim, but the water was cold and fast.',
            '{H} threw in stones, but the river carried them away.',
        ],
        [
            'A fallen tree makes a good bridge',
            'We can build a boat from wood',
            'Wait until the water is low',
            'I know a place where the river is narrow',
        ],
        [
            'They pushed an old tree across the water, and {N} walked over it.',
            'They built a little boat, and it carried them to the other side.',
            '{W} showed {m} the narrow place, and {N} crossed with dry feet.',
        ],
        ['Soon {N} was safe at home.', 'That night {N} slept in {s} own bed.'],
    ),
    (
        'hungry',
        [
            'One winter there was nothing left to eat.',
            'One day the cupboard was empty and {N} was very hungry.',
            'When the snow came, {N} had no food in the house.',
        ],
        [
            '{H} knocked at three doors, but nobody opened.',
            '{H} looked under the snow, but the ground was frozen hard.',
            '{H} went to the market, but {h} had no money.',
        ],
        [
            'I have {f} enough for two',
            'Share the work with me and I will share my {f}',
            'Help me carry this wood and you shall have {f}',
            'Come and sit by my fire',
        ],
        [
            '{N} helped {w} all day, and in the evening they ate warm {f} together.',
            'They carried the wood home and shared a big plate of {f}.',
            'So {N} worked hard, and {w} gave {m} all the {f} {h} could eat.',
        ],
        [
            '{N} was never hungry again that winter.',
            'In spring {N} planted a garden and shared all that grew.',
        ],
    ),
    (
        'dark',
        [
            'One night {N} lost the way in the dark wood.',
            'One evening the sun went down and {N} was still far from home.',
            'One day a thick fog came and {N} could not see the path.',
        ],
        [
            '{H} called for help, but only the wind answered.',
            '{H} walked and walked, and came back to the same tree.',
            '{H} sat down on a stone and began to cry.',
        ],
        [
            'Do not be afraid, I can see in the dark',
            'Follow the light of the bright star',
            'Listen for the sound of the river',
            'Hold on to my hand and come with me',
        ],
        [
            '{N} followed {w} through the trees until {h} saw a light in the window.',
            'They went on step by step, and before midnight they came to the door.',
            '{N} listened and looked, and at last {h} found the road.',
        ],
        ['From that night {N} was not afraid of the dark.', 'After that {N} always carried a small lamp.'],
    ),
    (
        'friend',
        [
            '{N} wanted a friend more than anything.',
            'Every day {N} played alone, and {h} was sad.',
            '{N} wished for someone to talk to.',
        ],
        [
            '{H} talked to the moon, but the moon did not answer.',
            '{H} waited at the gate, but nobody came.',
            '{H} asked the wind to play, but the wind ran away.',
        ],
        [
            'If you want a friend, be a friend',
            'Let us play together',
            'I am looking for a friend too',
            'Will you share your {f} with me',
        ],
        [
            'So they played by the water until the sun went down.',
            '{N} gave half of {s} {f} to {w}, and they laughed all afternoon.',
            'They told each other stories and forgot the time.',
        ],
        ['From that day {N} and {w} were best friends.', 'Now {N} was never alone again.'],
    ),
    (
        'wolf',
        [
            'One day a hungry wolf came to the gate.',
            'One night a big bad wolf knocked at the door.',
            'One day a wolf hid near the path and waited for {N}.',
        ],
        [
            '{N} shut the door, but the wolf did not go away.',
            '{N} shouted loudly, but the wolf only laughed.',
            '{N} ran as fast as {h} could, but the wolf was faster.',
        ],
        [
            'Tell the wolf that the hunter is here',
            'A wolf is afraid of fire',
            'Let us ring the bell and wake the village',
            'Hide behind me and be very quiet',
        ],
        [
            'They rang the bell so loudly that the wolf ran away over the hills.',
            'They lit a big fire, and the wolf ran back into the forest.',
            'They played a trick on the wolf, and {F} fell into the pond.',
        ],
        ['The wolf never came back.', 'After that there was peace in the whole land.'],
    ),
    (
        'sick',
        [
            'One day the {K} of the land fell ill, and nobody could help.',
            'One winter {s} mother fell ill.',
            'One day {s} best friend became very ill.',
        ],
        [
            '{N} asked the doctor, but the doctor did not know what to do.',
            '{N} made hot {f}, but it did not help.',
            '{N} looked in many books and found nothing.',
        ],
        [
            'A red flower grows on the top of the mountain',
            'Bring water from the clear spring',
            'Take this herb and boil it in milk',
            'A song can heal more than medicine',
        ],
        [
            '{N} climbed up, picked the flower and ran home without a rest.',
            '{N} brought the water in a small cup and did not spill a drop.',
            '{N} did everything just as {w} had said.',
        ],
        ['The next morning the sick one sat up and smiled.', 'After three days all was well again.'],
    ),
    (
        'race',
        [
            'One day there was a great race, and {N} wanted to win.',
            'One summer everyone in the land came to run a race.',
            '{N} heard that the winner of the race would get {g}.',
        ],
        [
            '{H} ran too fast at the start and soon had to rest.',
            '{H} fell over a root and hurt {s} foot.',
            '{H} laughed at the others and lay down to sleep.',
        ],
        [
            'Slow and steady is better than fast and tired',
            'Do not look back, look ahead',
            'Run with me and we will both finish',
            'Breathe slowly and count your steps',
        ],
        [
            '{N} ran at an even pace and passed one runner after another.',
            'They ran side by side and crossed the line together.',
            '{N} got up again and ran on to the end.',
        ],
        ['In the end {N} won {g}.', '{N} did not win, but everyone clapped.'],
    ),
    (
        'build',
        [
            '{N} wanted to build a house before the winter.',
            'One day a storm blew the roof off the house.',
            'One day {N} began to build a tall tower.',
        ],
        [
            '{H} worked all day, but the wall fell down.',
            '{H} used straw, and the wind blew it away.',
            '{H} had no nails and no wood.',
        ],
        [
            'Use stone and not straw',
            'Many hands make light work',
            'Begin with a strong floor',
            'I will bring wood and you bring the nails',
        ],
        [
            'They worked for seven days, and then the house was strong and warm.',
            'All the neighbors came to help, and by evening it was done.',
            'Stone by stone they built it, and the wind could not move it.',
        ],
        ['When the snow came, {N} sat by the fire and was glad.', 'The house is still standing today.'],
    ),
    (
        'riddle',
        [
            'One day a giant stood on the road and asked a riddle.',
            'The {K} said: "Who solves my riddle shall have {g}."',
            'One day {N} came to a gate that would open only for a riddle.',
        ],
        [
            '{N} thought for three days and found no answer.',
            '{N} gave the wrong answer two times.',
            '{N} asked all the clever people, but they only shook their heads.',
        ],
        [
            'The answer is smaller than you think',
            'What has a bed but never sleeps? It is the river',
            'What has teeth but cannot bite? It is the comb',
            'What has hands but cannot clap? It is the clock',
        ],
        [
            '{N} went back and gave the answer, and it was right.',
            '{N} smiled, said the answer aloud, and the gate opened.',
            '{N} told the answer, and everyone was surprised.',
        ],
        ['So {N} got {g} and went home happy.', 'From then on people came to {N} with every riddle.'],
    ),
    (
        'sing',
        [
            '{N} wanted to sing, but {s} voice was very small.',
            'One day there was a feast, and {N} was asked to sing.',
            '{N} dreamed of playing music for the {K}.',
        ],
        [
            '{H} tried to sing, but no sound came out.',
            'The others laughed, and {N} ran away.',
            '{H} practiced once and then gave up.',
        ],
        [
            'Sing with your heart and not with your throat',
            'Practice a little every day',
            'Sing for me first, I am only one',
            'Close your eyes and think of something you love',
        ],
        [
            '{N} practiced every day, and in spring {s} song was lovely.',
            '{N} closed {s} eyes and sang, and everyone was silent.',
            'They sang together, and the whole wood listened.',
        ],
        ['Everyone clapped and asked for one more song.', 'Since then {N} has sung at every feast.'],
    ),
    (
        'greed',
        [
            'One day {N} found a tree with golden apples.',
            'One day {N} found a pot full of coins.',
            'One day {N} found a purse on the road.',
        ],
        [
            '{H} took more and more until {h} could not walk.',
            '{H} hid it all and could not sleep for fear.',
            '{H} told nobody and ate supper alone.',
        ],
        [
            'Take only what you need',
            'This belongs to somebody else',
            'What you share will come back to you',
            'Gold cannot keep you warm',
        ],
        [
            '{N} kept one piece and gave the rest to the poor.',
            '{N} looked for the owner and gave everything back.',
            '{N} shared it with all the neighbors.',
        ],
        ['That night {N} slept better than ever.', 'The owner thanked {N} and gave {m} {g}.'],
    ),
    (
        'trap',
        [
            'One day {N} fell into a deep hole.',
            'One day {N} was caught in a net.',
            'One day {s} foot was stuck between two rocks.',
        ],
        [
            '{H} pulled and pulled, but it was no use.',
            '{H} called until {s} voice was gone.',
            '{H} tried to climb out, but {h} slipped every time.',
        ],
        [
            'Hold still and I will help you',
            'I am small, but my teeth are sharp',
            'I will bring a long rope',
            'Push while I pull',
        ],
        [
            'Bit by bit {w} set {N} free.',
            '{W} worked without a rest, and before sunset {N} was free.',
            'They pulled together with all their strength, and {N} came free.',
        ],
        ['{N} never forgot who had helped {m}.', 'A year later {N} helped {w} in the same way.'],
    ),
    (
        'fly',
        [
            '{N} wanted to fly like the birds.',
            '{N} dreamed of touching the moon.',
            'Every night {N} looked at the stars and wanted to go there.',
        ],
        [
            '{H} jumped from a low wall and fell into the mud.',
            '{H} climbed the tallest tree, but the sky was still far away.',
            '{H} made wings of paper, but the rain spoiled them.',
        ],
        [
            'You can ride on the wind with a big kite',
            'Look into the pond at night',
            'Climb on my back and hold tight',
            'Dreams are wings too',
        ],
        [
            'That night {N} looked into the pond and saw the moon so near that {h} could touch it.',
            'They built a great kite, and the wind lifted {N} above the trees.',
            '{N} closed {s} eyes, and it felt just like flying.',
        ],
        ['{N} laughed and was content.', '{H} told the story to everyone who would listen.'],
    ),
    (
        'quarrel',
        [
            'One day {N} had a quarrel with {s} brother about a {t}.',
            'One day {N} said an angry word to a good friend.',
            'One day {N} broke the {t} of a neighbor and told a lie about it.',
        ],
        [
            'They did not speak for a week.',
            '{N} was too proud to say sorry.',
            '{N} hid in the barn and felt ashamed.',
        ],
        [
            'A small word can mend a big hole',
            'Say that you are sorry',
            'The truth is heavy only until you tell it',
            'Who is right is less important than who is kind',
        ],
        [
            '{N} went there and said, "I am sorry." At once all was well.',
            '{N} told the truth, and nobody was angry any more.',
            '{N} brought a basket of {f} and asked to be forgiven.',
        ],
        ['They shook hands and laughed.', 'After that they shared everything.'],
    ),
    (
        'seed',
        [
            'One spring {N} planted a small seed.',
            'One day an old man gave {N} a strange seed.',
            '{N} wanted to grow the biggest pumpkin in the land.',
        ],
        [
            'Every day {h} looked, but nothing grew.',
            '{H} forgot to water it, and the ground became dry.',
            '{H} dug it up again to see if it was growing.',
        ],
        [
            'Give it water and give it time',
            'A seed needs sleep before it wakes',
            'Sing to it in the morning',
            'Pull out the weeds and wait',
        ],
        [
            '{N} watered it each morning, and one day a green leaf came up.',
            '{N} waited and cared for it, and it grew taller than the house.',
            'The rain fell, the sun shone, and at last a flower opened.',
        ],
        ['Everyone came to see it.', 'In autumn there was enough for the whole village.'],
    ),
]
MORALS = [
    'A good friend is better than gold.',
    'Kindness always comes back.',
    'Who is patient will be rewarded.',
    'Even the small can help the great.',
    'It is never too late to say sorry.',
    'Courage begins with one step.',
    'Together we can do more than alone.',
    'The truth is the best way.',
    'Do not give up too soon.',
    'Sharing makes every meal taste better.',
    'Listen before you speak.',
    'Help others and others will help you.',
]
OPEN = [
    'Once upon a time there was {a} {T} {k} named {N}.',
    'Once upon a time {a} {T} {k} named {N} lived {P}.',
    'Long ago there lived {a} {T} {k} whose name was {N}.',
    'There was once {a} {T} {k} called {N}.',
    'Once there was {a} {T} {k}, and {s} name was {N}.',
    'In a time long past, {a} {T} {k} named {N} lived {P}.',
]
HOME = [
    '{H} lived {P}.',
    '{H} had {s} home {P}.',
    '{N} lived {P} all alone.',
    '{N} lived {P} with {s} old grandmother.',
    '{N} had always lived {P}.',
]
TRAITLINE = [
    '{N} {x}.',
    'Everyone knew that {N} {x}.',
    'People said that {N} {x}.',
    '{H} {x}, and everyone knew it.',
]
TIME = [
    'The sun was shining and the birds were singing.',
    'It was a cold and windy day.',
    'It was early in spring.',
    'The leaves were red and yellow.',
    'The moon was round and bright.',
    'It had rained for three days.',
    'The snow lay deep on the ground.',
    '',
]
MEET = [
    'Then {w0} came by.',
    'Just then {h} met {w0}.',
    'After a while {w0} came along the road.',
    'At that moment {h} saw {w0}.',
    'On the third day {h} met {w0}.',
    'There, on a stone, sat {w0}.',
]
ASK = [
    '"Why are you so sad?" asked {w}.',
    '"What is the matter?" asked {w}.',
    '"Can I help you?" asked {w}.',
    '"Good day, {N}," said {w}. "What are you doing?"',
    '"Please help me," said {N}.',
    '{N} told {w} everything.',
]
TELL = [
    '"{A}," said {w}.',
    '{W} thought for a moment and said, "{A}."',
    '"I know what to do," said {w}. "{A}."',
    '"Listen to me," said {w}. "{A}."',
    '{W} smiled. "{A}," {v} said.',
]
FEEL = [
    '{N} was very happy.',
    '{N} laughed with joy.',
    '"Thank you, dear friend!" said {N}.',
    '"I will never forget this," said {N}.',
    'How glad {N} was!',
    '{N} thanked {w} and gave {u} {g}.',
    '{N} danced around three times.',
    '',
]
END = [
    'And they lived happily ever after.',
    'And {N} remembered it for the rest of {s} life.',
    'The moral is: {M}',
    'So {N} learned: {l}',
    'And that is the end of the story.',
    '"Now I know," said {N}. "{M}"',
    'And if {h} has not moved away, {h} still lives there today.',
]
ASKS = [
    'Tell me a story about {a} {T} {k}.',
    'Tell me a story about {a} {k}.',
    'Please tell me a story about {a} {T} {k}.',
    'Write a short story about {a} {T} {k} named {N}.',
    'Can you tell me a story about {a} {k} named {N}?',
    'I would like to hear a story about {a} {T} {k}.',
    'Tell me a story.',
    'Tell me a bedtime story about {a} {T} {k}.',
    'Write a story about {N}, {a} {T} {k}.',
]


def art(w):
    return 'an' if w[0] in 'aeiou' else 'a'


def cap(s):
    return s[0].upper() + s[1:]


def plan(r):
    """Choose every slot of one story."""
    if r.random() < 0.6:
        kind, g = r.choice(ANIMALS), r.choice('mf')
    else:
        kind, g = r.choice(FOLK)
    T = r.choice(list(TRAITS))
    N = r.choice(HIM if g == 'm' else HER)
    p = r.choice(PLACES)
    hs = [h for h in HELPERS if kind not in h[1]]
    w0, w, wg = r.choice(hs)
    v = dict(
        k=kind,
        T=T,
        N=N,
        P=' '.join(p),
        x=TRAITS[T],
        w0=w0,
        w=w,
        W=cap(w),
        v='he' if wg == 'm' else 'she',
        u='him' if wg == 'm' else 'her',
        g=r.choice(GIFTS),
        t=r.choice(TREASURES),
        d=r.choice(HIDING),
        f=r.choice(FOODS),
        F='he',
        K=r.choice([x for x in ('king', 'queen') if x != kind]),
        a=art(T),
        h='he' if g == 'm' else 'she',
        H='He' if g == 'm' else 'She',
        m='him' if g == 'm' else 'her',
        s='his' if g == 'm' else 'her',
        M=r.choice(MORALS),
    )
    v['l'] = v['M'][0].lower() + v['M'][1:]
    return v, r.choice(
        [
            t
            for t in TROUBLES
            if not (t[0] == 'wolf' and kind in ('wolf', 'lion', 'tiger', 'bear', 'dragon', 'giant'))
        ]
    )


def render(r, v, t):
    name, wish, fail, advice, solve, fact = t
    fit = lambda s: s.format(**v)
    o = r.choice(OPEN)
    s1 = [fit(o)]
    if '{P}' not in o:
        s1.append(fit(r.choice(HOME)))
    if r.random() < 0.75:
        s1.append(fit(r.choice(TRAITLINE)))
    s2 = []
    if r.random() < 0.35:
        s2.append(r.choice(TIME))
    s2.append(fit(r.choice(wish)))
    if r.random() < 0.9:
        s2.append(fit(r.choice(fail)))
    if r.random() < 0.25:
        s2.append(
            fit(
                r.choice(
                    [
                        '{N} did not know what to do.',
                        '"What shall I do now?" said {N}.',
                        '"Oh dear!" cried {N}.',
                        '{N} sighed.',
                    ]
                )
            )
        )
    s3 = [fit(r.choice(MEET))]
    if r.random() < 0.7:
        s3.append(fit(r.choice(ASK)))
    v['A'] = fit(r.choice(advice))
    s3.append(fit(r.choice(TELL)))
    s4 = [fit(r.choice(solve))]
    if r.random() < 0.6:
        s4.append(fit(r.choice(FEEL)))
    s4.append(fit(r.choice(fact)))
    if r.random() < 0.85:
        s4.append(fit(r.choice(END)))
    ps = [' '.join(x for x in s if x) for s in (s1, s2, s3, s4)]
    k = r.random()
    if k < 0.4:
        return ' '.join(ps)
    if k < 0.7:
        return ps[0] + ' ' + ps[1] + '\n\n' + ps[2] + ' ' + ps[3]
    return '\n\n'.join(ps)


def key(v, t):
    return f"story {v['k']} {v['T']} {v['w']} {t[0]}"


def story(r):
    v, t = plan(r)
    return render(r, v, t), key(v, t)


def story_request(r):
    v, t = plan(r)
    q = r.choice(ASKS).format(**v)
    if '{T}' not in q and 'about a ' in q:
        q = q.replace(f'a {v["T"]} {v["k"]}', f'{art(v["k"])} {v["k"]}')
    return fix(q, v), render(r, v, t), key(v, t)


def fix(q, v):
    """'a'/'an' was chosen for the trait; repair it where the trait is left out."""
    return q.replace(f' a {v["k"]}', f' {art(v["k"])} {v["k"]}').replace(
        f' an {v["k"]}', f' {art(v["k"])} {v["k"]}'
    )
