#!/usr/bin/env python3
"""Makes the quickstart's short stories: instruction examples and bulk text for pretraining.

    make_stories.py                      write train.jsonl and heldout.jsonl beside this script, and verify them
    make_stories.py --check              verify the committed files only
    make_stories.py --bulk=F --bytes=N   write about N bytes of stories with retellings to F, one {"text": ...} a line

Standard library only; the same seed gives the same bytes. Held-out stories share no names and no sentences with the
training ones nor with the bulk text: the script proves it, also with the words of the closed sets masked.
"""

import argparse
import collections
import json
import os
import random
import re
import sys

import story_words as words

HERE = os.path.dirname(os.path.abspath(__file__))
TASKS = list(words.QUESTIONS)
# What the sentences of a story tell; the thing's sentence tells its colour too.
PARTS = ('place', 'animal', 'thing', 'weather', 'event', 'mood')
LABELS = {'mood': list(words.MOOD_VERBS), 'place': list(words.PLACES), 'animal': words.ANIMALS,
          'weather': words.WEATHERS, 'colour': words.COLOURS, 'thing': words.THINGS, 'event': ['yes', 'no']}


def expand(rng, template, slots):
    """Chooses each [a|b] and fills each {slot}."""
    text = re.sub(r'\[([^][]*)\]', lambda m: rng.choice(m.group(1).split('|')), template)
    return re.sub(r'\{(\w+)\}', lambda m: slots[m.group(1)], text)


def make_story(rng, source, fixed, parts=PARTS):
    """Returns (text, facts). `fixed` sets some facts; the others are drawn. facts['events'] is a set, facts['told'] the
    tasks that the story answers: those of its parts."""
    facts = {task: fixed.get(task) or rng.choice(LABELS[task]) for task in TASKS if task != 'event'}
    events = list(words.EVENTS)
    rng.shuffle(events)
    if 'present' in fixed:
        events.remove(fixed['present'])
        events.insert(0, fixed['present'])
    if 'absent' in fixed:
        events.remove(fixed['absent'])
    facts['events'] = set(events[:rng.choice([1, 2])])
    verbs = rng.sample(words.MOOD_VERBS[facts['mood']], 2)
    kin = rng.choice(source['kin'])
    slots = {'N': rng.choice(source['names']), 'K': kin, 'K2': kin[0].upper() + kin[1:], 'A': facts['animal'],
             'P': words.PLACES[facts['place']], 'L': facts['place'], 'C': facts['colour'], 'T': facts['thing'],
             'W': facts['weather'], 'V': verbs[0], 'V2': verbs[1],
             'J': rng.choice(words.MOOD_ADJECTIVES[facts['mood']])}
    facts['name'] = slots['N']

    def say(templates):
        return expand(rng, rng.choice(templates), slots)

    whole = len(parts) == len(PARTS)
    weather = source['weather']
    tell = {'animal': lambda: [say(source['animal'])], 'thing': lambda: [say(source['thing'])],
            'weather': lambda: [say(weather['any'] if rng.random() < 0.6 else weather[facts['weather']])],
            'event': lambda: [say(source['event'][event]) for event in sorted(facts['events'])]}
    middle = [sentence for part in parts if part in tell for sentence in tell[part]()]
    if whole and rng.random() < 0.4:
        middle.append(say(source['filler']))
    rng.shuffle(middle)
    moods = []
    if 'mood' in parts:
        moods = [say(source['mood'])]
        if whole and rng.random() < 0.5:  # A second sign of the same mood.
            moods.append(say(source['mood']))
        if rng.random() < 0.3:
            middle.insert(rng.randint(0, len(middle)), moods.pop())
    told = set(parts) | ({'colour'} if 'thing' in parts else set())
    facts['told'] = [task for task in TASKS if task in told]
    opening = [say(source['opening'])] if 'place' in parts else []
    sentences = opening + middle + [mood for mood in moods if mood not in middle]
    return ' '.join(dict.fromkeys(sentences)), facts


def make_example(rng, source, task, label, event=None):
    """One row: a story and a question as the user, the answer in its fixed form as the assistant."""
    fixed = {task: label} if task != 'event' else {'present' if label == 'yes' else 'absent': event}
    story, _ = make_story(rng, source, fixed)
    question = rng.choice(words.QUESTIONS[task])
    if task == 'event':
        question = question.replace('{event}', words.EVENTS[event])
    return {'messages': [{'role': 'user', 'content': story + '\n' + question},
                         {'role': 'assistant', 'content': words.ANSWERS[task].format(label)}]}


def make_examples(seed, source, per_task):
    """per_task examples of each task, the labels of a task equally often, all in a random order."""
    rng = random.Random(seed)
    rows, seen = [], set()
    for task in TASKS:
        for i in range(per_task):
            label = LABELS[task][i % len(LABELS[task])]
            event = list(words.EVENTS)[i // 2 % len(words.EVENTS)] if task == 'event' else None
            row = make_example(rng, source, task, label, event)
            while row['messages'][0]['content'] in seen:
                row = make_example(rng, source, task, label, event)
            seen.add(row['messages'][0]['content'])
            rows.append(row)
    rng.shuffle(rows)
    return rows


# Natural ways to tell a fact again; none has the form of an instruction answer.
RETELL = {
    'mood': ['The story was {}.', 'The mood was {}.', 'So {N} was {}.', '{N} felt {} in the end.'],
    'place': ['The story happened {P}.', 'They were {P}.', 'All this was {P}.', 'The place was the {}.',
              'It took place {P}.'],
    'animal': ['There was a {} in it.', 'The animal was a {}.', '{N} was with a {}.'],
    'weather': ['The weather was {}.', 'The day was {}.', 'It was {} outside.'],
    'colour': ['The colour was {}.', 'The {T} was {}.', 'It had the colour {}.'],
    'thing': ['The thing was a {}.', '{N} had a {}.'],
    'yes': ['Yes, someone did {}.', 'Yes, {N} or a friend did {}.', 'Yes, they did {}.'],
    'no': ['No, nobody did {}.', 'No, they did not {}.', 'No, no one did {}.'],
}
ASK = {
    'mood': ['How did {N} feel?', 'Was it a happy or a sad story?', 'What was the mood?', 'Tell me how it felt.'],
    'place': ['Where were they?', 'Where was {N}?', 'What was the place?', 'Where did all this happen?'],
    'animal': ['What animal was there?', 'Which animal came?', 'What was the animal?', 'Who was with {N}?'],
    'weather': ['How was the weather?', 'What was the weather?', 'What kind of day was it?', 'How was it outside?'],
    'colour': ['What colour was it?', 'Which colour was the {T}?', 'What was the colour?',
               'What colour was the thing?'],
    'thing': ['What did {N} have?', 'Which thing was there?', 'What was the thing?', 'What thing did you hear of?'],
    'event': ['Did they {}?', 'Did {N} {}?', 'Did someone {}?', 'Was there anyone to {}?'],
}


def ask(rng, task, facts):
    """A question about a fact and its natural answer."""
    slots = {'N': facts['name'], 'P': words.PLACES[facts['place']], 'T': facts['thing']}
    if task == 'event':
        present = rng.random() < 0.5
        event = rng.choice([e for e in words.EVENTS if (e in facts['events']) == present])
        answer = expand(rng, rng.choice(RETELL['yes' if present else 'no']), slots).replace('{}', words.EVENTS[event])
        return expand(rng, rng.choice(ASK['event']), slots).replace('{}', words.EVENTS[event]), answer
    answer = expand(rng, rng.choice(RETELL[task]), slots).replace('{}', facts[task])
    return expand(rng, rng.choice(ASK[task]), slots), answer


def sentence_told_again(rng):
    """One part of a story, then what it says."""
    story, facts = make_story(rng, words.TRAIN, {}, (rng.choice(PARTS),))
    question, answer = ask(rng, rng.choice(facts['told']), facts)
    return f'{story} {question} {answer}' if rng.random() < 0.5 or answer[:3] in ('Yes', 'No,') else f'{story} {answer}'


def bulk_document(rng):
    """A story of the training wording, told twice, told again, asked about in prose, or as a talk in chat form.

    Half of the stories are brief, some are told twice, and some documents tell each sentence again at once, because a
    small model learns from these first how to find in a text what is asked for."""
    if rng.random() < 0.2:
        return ' '.join(sentence_told_again(rng) for _ in range(rng.randint(3, 6)))
    parts = PARTS if rng.random() < 0.5 else ('place', *rng.sample(PARTS[1:], rng.randint(1, 3)))
    story, facts = make_story(rng, words.TRAIN, {}, parts)
    kind = rng.random()
    if kind < 0.12:
        return story + '\n' + rng.choice(['Tell it again.', 'Once more:', 'Then it was told again.']) + '\n' + story
    tasks = rng.sample(facts['told'], rng.randint((len(facts['told']) + 1) // 2, len(facts['told'])))
    pairs = [ask(rng, task, facts) for task in tasks]
    if kind < 0.35:
        return story + '\n' + ' '.join(answer for _, answer in pairs)
    if kind < 0.5:
        who = rng.choice(['mother', 'father', 'grandma', 'the teacher', 'a friend'])
        return story + '\n' + '\n'.join(f'"{question}" asked {who}. "{answer}"' for question, answer in pairs)
    turn = '<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n'
    if kind < 0.55:
        wish = 'Tell me a {mood} story about a {animal} and a {thing}.'.format(**facts)
        wanted = {task: facts[task] for task in ('mood', 'animal', 'thing')}
        return turn.format(wish, make_story(rng, words.TRAIN, wanted)[0])
    pairs = [(story + '\n' + pairs[0][0], pairs[0][1])] + pairs[1:]
    return ''.join(turn.format(question, answer) for question, answer in pairs)


def sentences(text):
    """The sentences of a text, without quotation marks."""
    return {s.strip(' "') for s in re.split(r'(?<=[.!?])["\s]+', text) if s.strip(' "')}


def mask(sentence):
    """The sentence with names and the words of the closed sets replaced, so that equal wording is seen."""
    groups = {'name': words.TRAIN['names'] + words.HELDOUT['names'], 'place': list(words.PLACES),
              'animal': words.ANIMALS, 'colour': words.COLOURS, 'thing': words.THINGS, 'weather': words.WEATHERS,
              'adjective': sum(words.MOOD_ADJECTIVES.values(), []), 'verb': sum(words.MOOD_VERBS.values(), [])}
    kinds = {word: f'<{kind}>' for kind, group in groups.items() for word in group}
    return re.sub(r'\w+', lambda m: kinds.get(m.group(0), m.group(0)), sentence)


def story_of(row):
    return row['messages'][0]['content'].rsplit('\n', 1)[0]


def verify(train, heldout, bulk_texts=()):
    """Raises ValueError where a promise of this script does not hold."""
    held = set().union(*(sentences(story_of(row)) for row in heldout))
    held_masked = {mask(s) for s in held}
    seen = set().union(*(sentences(story_of(row)) for row in train), *(sentences(text) for text in bulk_texts))
    shared = (held & seen) | (held_masked & {mask(s) for s in seen})
    if shared:
        raise ValueError(f'held-out sentences in the training text: {sorted(shared)[:5]}')
    text = ' '.join([story_of(row) for row in train] + list(bulk_texts))
    names = set(re.findall(r'\w+', text)) & set(words.HELDOUT['names'])
    names |= set(re.findall(r'\w+', ' '.join(map(story_of, heldout)))) & set(words.TRAIN['names'])
    if names:
        raise ValueError(f'names in both: {sorted(names)}')
    for rows, least in ((train, 1200), (heldout, 240)):
        if len(rows) < least or len({row['messages'][0]['content'] for row in rows}) != len(rows):
            raise ValueError(f'{len(rows)} examples, expected at least {least}, all different')
        verify_answers(rows)


def verify_answers(rows):
    """Every answer follows from its story, and no question tells its answer."""
    by_question = collections.defaultdict(collections.Counter)
    for row in rows:
        question = row['messages'][0]['content'].rsplit('\n', 1)[1]
        answer = row['messages'][1]['content']
        by_question[question][answer] += 1
        kind, label = re.fullmatch(r'(\w+): (\w+)\.', answer).groups()
        found = set(re.findall(r'\w+', story_of(row)))
        if kind == 'Answer':
            event = next(e for e, phrase in words.EVENTS.items() if phrase in question)
            holds = (event in found) == (label == 'yes')
        elif kind == 'Mood':
            cues = {m: set(words.MOOD_ADJECTIVES[m] + words.MOOD_VERBS[m]) for m in LABELS['mood']}
            holds = [m for m in cues if cues[m] & found] == [label]
        else:
            stems = {'sunny': 'sun', 'rainy': 'rain', 'snowy': 'snow', 'windy': 'wind', 'foggy': 'fog',
                     'stormy': 'storm'}
            tells = {x for x in LABELS[kind.lower()] if any(
                w == x or x in stems and w.startswith(stems[x]) and not w.startswith('window') for w in found)}
            holds = tells == {label}
        if not holds:
            raise ValueError(f'the story does not tell the answer: {row}')
    for question, answers in by_question.items():
        if max(answers.values()) > 0.75 * sum(answers.values()) and sum(answers.values()) > 12:
            raise ValueError(f'"{question}" tells its answer: {answers}')


def read_rows(name):
    with open(os.path.join(HERE, name), encoding='utf-8') as f:
        return [json.loads(line) for line in f]


def write_rows(path, rows):
    with open(path, 'w', encoding='utf-8') as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + '\n')


def describe(train, heldout):
    """Prints sizes and the score of always giving a task's most frequent answer."""
    for name, rows in (('train', train), ('heldout', heldout)):
        tasks = collections.defaultdict(collections.Counter)
        for row in rows:
            answer = row['messages'][1]['content']
            tasks[answer.split(':')[0]][answer] += 1
        most = sum(max(counts.values()) for counts in tasks.values()) / len(rows)
        lengths = [len(story_of(row).split()) for row in rows]
        print(f'{name}: {len(rows)} examples of {len(tasks)} tasks, {min(lengths)} to {max(lengths)} words a story '
              f'(mean {sum(lengths) / len(lengths):.0f}); most frequent answer per task: {100 * most:.1f}%')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true')
    parser.add_argument('--bulk')
    parser.add_argument('--bytes', type=int, default=8_000_000)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    if args.bulk:
        rng, rows, size = random.Random(args.seed + 1000), [], 0
        while size < args.bytes:
            rows.append({'text': bulk_document(rng)})
            size += len(rows[-1]['text'])
        verify(read_rows('train.jsonl'), read_rows('heldout.jsonl'), [row['text'] for row in rows])
        write_rows(args.bulk, rows)
        print(f'{args.bulk}: {len(rows)} documents, {size} bytes')
        return 0
    if not args.check:
        train, heldout = make_examples(args.seed, words.TRAIN, 240), make_examples(args.seed + 1, words.HELDOUT, 48)
        verify(train, heldout)
        write_rows(os.path.join(HERE, 'train.jsonl'), train)
        write_rows(os.path.join(HERE, 'heldout.jsonl'), heldout)
    train, heldout = read_rows('train.jsonl'), read_rows('heldout.jsonl')
    verify(train, heldout)
    describe(train, heldout)
    return 0


if __name__ == '__main__':
    sys.exit(main())
