"""Word lists and sentence templates of the made stories (see make_stories.py).

`TRAIN` serves the training examples and the pretraining text, `HELDOUT` the held-out examples alone. The two share the
closed sets below (what a story can be about) and neither names nor sentences. In a template, [a|b] is a choice and
{slot} a word of the story: N hero, K companion, A animal, P place with its preposition, L place, C colour, T thing,
J mood adjective, V mood verb, W weather adjective.
"""

# Closed sets: label -> the words that tell it. Every label is one answer.
PLACES = {'park': 'in the park', 'beach': 'at the beach', 'farm': 'at the farm', 'forest': 'in the forest',
          'school': 'at the school', 'garden': 'in the garden', 'market': 'at the market', 'lake': 'at the lake'}
ANIMALS = ['dog', 'cat', 'bird', 'rabbit', 'frog', 'duck', 'horse', 'mouse']
COLOURS = ['red', 'blue', 'green', 'yellow', 'white', 'black', 'pink', 'brown']
THINGS = ['ball', 'kite', 'hat', 'book', 'boat', 'cup', 'drum', 'box']
WEATHERS = ['sunny', 'rainy', 'snowy', 'windy', 'foggy', 'stormy']
MOOD_ADJECTIVES = {
    'happy': ['happy', 'glad', 'joyful', 'merry'], 'sad': ['sad', 'unhappy', 'gloomy', 'sorrowful'],
    'scared': ['scared', 'afraid', 'frightened', 'terrified'], 'angry': ['angry', 'mad', 'cross', 'furious'],
    'tired': ['tired', 'sleepy', 'weary', 'drowsy'], 'surprised': ['surprised', 'amazed', 'astonished', 'shocked']}
MOOD_VERBS = {
    'happy': ['laughed', 'smiled', 'giggled', 'cheered'], 'sad': ['cried', 'wept', 'sobbed', 'sniffled'],
    'scared': ['trembled', 'shook', 'screamed', 'hid'], 'angry': ['shouted', 'growled', 'stomped', 'frowned'],
    'tired': ['yawned', 'dozed', 'snored', 'slumped'], 'surprised': ['gasped', 'blinked', 'stared', 'jumped']}
# Event -> the words after "Did anyone ...?" in a question.
EVENTS = {'song': 'sing a song', 'cake': 'eat a cake', 'picture': 'draw a picture', 'letter': 'write a letter',
          'race': 'run a race', 'tree': 'climb a tree'}

TRAIN = {
    'names': ['Lily', 'Tom', 'Anna', 'Ben', 'Mia', 'Sam', 'Lucy', 'Max', 'Sara', 'Tim', 'Emma', 'Jack', 'Amy', 'Leo',
              'Rose', 'Bob', 'Ella', 'Dan', 'Nina', 'Joe', 'Kate', 'Paul', 'Ruby', 'Mark', 'Zoe', 'Fred', 'Jane',
              'Adam', 'Molly', 'Pete', 'Lola', 'Nick', 'Sue', 'Bill', 'Daisy', 'Roy', 'Grace', 'Luke', 'Mary', 'Finn',
              'Ivy', 'Toby', 'Clara', 'Jim', 'Polly', 'Ned', 'Alice', 'Gus', 'Tina', 'Ray', 'Ellie', 'Hugo', 'Dora',
              'Carl', 'Maya', 'Dean', 'Nora', 'Todd', 'Bella', 'Seth'],
    'kin': ['a friend', 'a cousin', 'the twins', 'a neighbor', 'an old man', 'a small boy', 'a kind lady', 'a teacher'],
    'opening': [
        'One day {N} was {P}.', '{N} went to the {L}.', '{N} [walked|ran|came] to the {L}.',
        '{N} [liked|loved] to [play|be] {P}.', 'Once {N} spent the day {P}.', '{N} and {K} were {P}.',
        '{N} and {K} [went|walked|came] to the {L}.', 'Once upon a time, {N} [played|sat|stood] {P}.',
        'Today {N} [took|made] a trip to the {L}.', '[Early|Late] one day, {N} was {P}.',
        'There was a child named {N} who was {P}.', '{N} met {K} {P}.', 'It was a long day {P} for {N}.',
        'The {L} was [big|quiet|full], and {N} liked it.', '{N} had never been to the {L} before.',
        'The [old|little] {L} was near the house of {N}.'],
    'animal': [
        'A [little|big|small|young] {A} [came|ran|hurried] to {N}.', '{N} saw a {A}.',
        '{N} had a [pet|small|funny] {A}.',
        'There was a {A} [there|too|near them].', 'The {A} of {N} [was there|came along|came too].',
        '{N} [played|sat|walked] with a {A}.', 'A {A} [sat|waited|played] close to {N}.',
        '{N} met a [nice|shy|soft] {A}.',
        'Then a {A} came [near|close].', '{N} [called|patted|fed|followed] the {A}.', 'The {A} looked at {N}.',
        'A [lost|hungry|clever] {A} wanted to be a friend.', '"Look, a {A}!" said {N}.'],
    'thing': [
        '{N} had a {C} {T}.', 'The {T} was {C}.', '{N} found a {C} {T}.', '{N} [held|carried|brought] a {C} {T}.',
        'There was a {C} {T} on the ground.', '{N} [looked at|picked up|wanted] the {C} {T}.',
        'A {C} {T} was [in a bag|near a wall|on a bench].', '{K2} gave {N} a {C} {T}.',
        '"This {C} {T} is mine," said {N}.',
        '{N} had a new {T}, and it was {C}.', '{N} [lost|dropped] the {C} {T}.', 'Someone had left a {C} {T} there.'],
    'weather': {
        'any': ['It was a {W} [day|morning|afternoon].', 'The day was {W}.', 'It was {W} [and quiet|all day|that day].',
                'The weather was {W}.', 'It had been {W} since [morning|dawn].'],
        'sunny': ['The sun [was bright|was warm|shone].', 'The sun was high in the [big|clear] sky.'],
        'rainy': ['The rain [fell|came down|did not stop].', 'It rained [a lot|hard|and rained].'],
        'snowy': ['The snow [fell|was deep|was cold].', 'It snowed [a lot|hard|and snowed].'],
        'windy': ['The wind [blew|was strong|was cold].', 'The wind pushed the leaves.'],
        'foggy': ['The fog [was thick|was low|came down].', 'The fog covered everything.'],
        'stormy': ['The storm [was loud|was near|came].', 'The storm made a lot of noise.']},
    'mood': [
        '{N} {V}.', '{N} was [very|so] {J}.', '{N} felt {J}.', '{N} {V} [and {V2}|for a long time|a lot].',
        'It made {N} [feel|very] {J}.', '{N} was {J} and {V}.', '{N} was {J} [all day|that day|then].',
        'Then {N} {V} [again|a little|at last].', '{N} {V}, and the friends {V2} too.',
        '"I am [so|very] {J}," said {N}.',
        'Soon {N} felt [very|quite|so] {J}.', '{N} looked {J} and {V}.'],
    'event': {
        'song': ['{N} sang a [nice|short|long] song.', 'They sang a song [together|about a star].',
                 '{N} knew a song and sang it.'],
        'cake': ['{N} ate a [big|small|sweet] cake.', 'They ate a cake [together|with cream].',
                 '{N} had a cake and ate it.'],
        'picture': ['{N} drew a [nice|small|big] picture.', 'They drew a picture [together|of a star].',
                    '{N} had a pen and drew a picture.'],
        'letter': ['{N} wrote a [nice|short|long] letter.', 'They wrote a letter [together|to a friend].',
                   '{N} had a pen and wrote a letter.'],
        'race': ['{N} ran a [long|short|fast] race.', 'They ran a race [together|to the gate].',
                 '{N} won a race by a step.'],
        'tree': ['{N} climbed a [tall|big|small] tree.', 'They climbed a tree [together|to see far].',
                 '{N} went up a tree and sat there.']},
    'filler': ['They [stayed|talked|played] for a while.', 'It was time to [eat|go|think].',
               'Nobody [knew why|said much].',
               'A bell rang [far away|twice].', '{N} [waited|looked around|thought] for a moment.',
               'Then they went home.',
               'What a day it was.', '{K2} said hello.', 'Everything was [quiet|new] there.'],
}

HELDOUT = {
    'names': ['Oscar', 'Hazel', 'Felix', 'Selma', 'Victor', 'Penny', 'Silas', 'Wendy', 'Edgar', 'Olive', 'Morton',
              'Greta', 'Howard', 'Irene', 'Conrad', 'Flora', 'Julian', 'Esther', 'Walter', 'Ingrid'],
    'kin': ['a sister', 'a brother', 'a doctor', 'an old woman', 'a driver', 'a baker'],
    'opening': [
        'This is a story about {N}, who was {P}.', '{N} wanted to see the {L}.', 'Last week {N} stayed {P}.',
        'In the story, {N} and {K} met {P}.', 'After lunch {N} went back to the {L}.', '{N} found {K} {P}.',
        'Nobody was {P} but {N}.', '{N} hurried to the {L} with {K}.'],
    'animal': [
        '{N} heard a {A} and turned around.', 'Beside {N} stood a {A}.', 'A {A} was watching {N}.',
        'Soon {N} found a {A}.',
        '{N} gave some food to the {A}.', 'The {A} was a good friend of {N}.', '{N} told the {A} a secret.'],
    'thing': [
        '{N} took the {C} {T} from a shelf.', 'Under a chair was a {C} {T}.', '{N} showed everyone a {C} {T}.',
        'The {C} {T} belonged to {N}.', '{N} wanted to keep the {C} {T}.', 'In one hand {N} had a {C} {T}.',
        '{N} put the {C} {T} away.'],
    'weather': {
        'any': ['What a {W} day!', 'That morning was {W}.', 'Everyone said that it was too {W}.',
                'Outside it was {W}.'],
        'sunny': ['The sun made everything warm.'], 'rainy': ['The rain made everything wet.'],
        'snowy': ['The snow made everything cold.'], 'windy': ['The wind made the doors move.'],
        'foggy': ['The fog made it hard to see.'], 'stormy': ['The storm made the windows shake.']},
    'mood': [
        'In the end {N} {V}.', 'Now {N} was {J}.', '{N} {V} on the way home.', 'Everyone saw that {N} was {J}.',
        'At that, {N} {V} and {V2}.', '"Why are you so {J}?" they asked {N}.', '{N} was too {J} to speak.',
        'That is why {N} {V}.'],
    'event': {
        'song': ['{N} sang everyone a song.', 'Later {N} sang an old song.'],
        'cake': ['{N} sat down and ate a cake.', 'Later {N} ate half a cake.'],
        'picture': ['{N} drew everyone a picture.', 'Later {N} drew another picture.'],
        'letter': ['{N} wrote everyone a letter.', 'Later {N} wrote another letter.'],
        'race': ['{N} ran in a race.', 'Later {N} ran another race.'],
        'tree': ['{N} climbed up into a tree.', 'Later {N} climbed another tree.']},
    'filler': ['The road was long.', 'An hour went by.', 'The clock said four.',
               'They all talked about it.', '{K2} opened the door.'],
}

# Task -> the questions asked in the instruction examples.
QUESTIONS = {
    'mood': ['What is the mood of the story?', 'How does the story feel?'],
    'place': ['What is the place of the story?', 'Where does the story happen?'],
    'animal': ['What is the animal in the story?', 'Which animal is in the story?'],
    'weather': ['What is the weather in the story?', 'How is the weather in the story?'],
    'colour': ['What is the colour of the thing?', 'Which colour is in the story?'],
    'thing': ['What is the thing in the story?', 'Which thing is in the story?'],
    'event': ['Did anyone {event}?', 'Is it true that someone did {event}?'],
}
ANSWERS = {'mood': 'Mood: {}.', 'place': 'Place: {}.', 'animal': 'Animal: {}.', 'weather': 'Weather: {}.',
           'colour': 'Colour: {}.', 'thing': 'Thing: {}.', 'event': 'Answer: {}.'}
