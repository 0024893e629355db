#!/usr/bin/env python3
"""Trains the same QLoRA with Thimble and with transformers + PEFT + bitsandbytes and sets losses, speed and memory side
by side.

    compare.py --thimble=PROGRAM --model=FOLDER --data=ROWS.jsonl --out=FOLDER
               [--modes=thimble-keep-f32,fp32,...] [--steps=20] [--accumulation=4] [--max_tokens=200] [--rounds=1]

The modes of Thimble name the activations (keep or recompute) and the arithmetic of the products (f32 or bf16), those
of the peer whether it checkpoints gradients and its arithmetic: fp32; bf16, where the 4-bit layers multiply in bf16
and all else is f32, as with peft's prepare_model_for_kbit_training; or bf16-model, where hidden states and logits are
bf16, too (it rounds more than Thimble does, so its losses are not compared). Without --modes all ten run.

Both see the same rows (of --min_tokens to --max_tokens tokens) in the same order, one a micro-batch, the same LoRA
start (drawn by Thimble, exported to PEFT), the same AdamW (constant rate, clipping at 1), and a loss summed over the
targets of the accumulated batch and divided by their number. Every run is a process of its own, so that its peak
resident memory (VmHWM) is its own. Speed is tokens a wall-clock second and tokens a CPU second (of all threads; other
programs on the machine disturb it less), both without two steps of warm-up. --rounds repeats all modes in turn; the
summary compares Thimble's best mode with the peer's best round by round. Prints JSON, which also lies in
OUT/comparison.json; what the peer says lies in OUT/MODE.log.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time

OURS = ('thimble-keep-f32', 'thimble-recompute-f32', 'thimble-keep-bf16', 'thimble-recompute-bf16')
PEERS = ('fp32', 'fp32-checkpointing', 'bf16', 'bf16-checkpointing', 'bf16-model', 'bf16-model-checkpointing')
MODES = OURS + PEERS
RATES = ('tokens_per_second', 'tokens_per_cpu_second')
MEASURED = (*RATES, 'peak_bytes')
WARM_UP = 2  # steps that speed leaves out
RECIPE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'qlora.yaml')


def encode_rows(tokenizer, path):
    """Token ids and mask of each row as the model's own template has them: answers and their <|im_end|> are learned."""
    rows = []
    with open(path, encoding='utf-8') as file:
        for line in file:
            ids, mask, messages = [], [], json.loads(line)['messages']
            for i, message in enumerate(messages):
                if message['role'] != 'assistant':
                    continue
                asked = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=False)
                told = tokenizer.apply_chat_template(messages[:i + 1], return_dict=False)
                mask += [0] * (len(asked) - len(mask))
                mask += [1] * (len(told) - len(asked) - 1) + [0]  # the line break behind <|im_end|> is not learned
                ids = told
            rows.append((ids, mask))
    return rows


def status_bytes(key):
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ':'))


def load_peer(args):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    compute_dtype = torch.bfloat16 if args.peer.startswith('bf16') else torch.float32
    dtype = torch.bfloat16 if args.peer.startswith('bf16-model') else torch.float32
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=compute_dtype)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, quantization_config=config, device_map='cpu')
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.config.use_cache = False
    if args.peer.endswith('-checkpointing'):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})
        model.enable_input_require_grads()
    model = PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    if any(p.dtype != torch.float32 for p in trained):
        raise ValueError('the adapter is expected in f32')
    return model, trained


def run_peer(args):
    """One mode of the peer in this process."""
    import torch
    from transformers import AutoTokenizer
    torch.set_num_threads(args.threads)
    rows = encode_rows(AutoTokenizer.from_pretrained(args.model), args.data)
    model, trained = load_peer(args)
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    losses, steps = [], []
    for step in range(args.steps):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        batch = rows[step * args.accumulation:(step + 1) * args.accumulation]
        targets = sum(sum(mask) for _, mask in batch)
        total = 0.0
        for ids, mask in batch:
            labels = [i if m else -100 for i, m in zip(ids, mask)]
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]), num_items_in_batch=targets).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        print(f'{args.peer}: step {step + 1}, loss {total:.4f}', file=sys.stderr, flush=True)
        steps.append((sum(len(ids) for ids, _ in batch), time.perf_counter() - begin, time.process_time() - cpu_begin))
    print(json.dumps(result_of(losses, steps, status_bytes('VmHWM'))))


def result_of(losses, steps, peak):
    """steps: (tokens, wall-clock seconds, CPU seconds) of each."""
    tokens, seconds, cpu_seconds = (sum(part) for part in zip((0, 0, 0), *steps[WARM_UP:]))
    return {'losses': losses, 'tokens_per_second': tokens / seconds if seconds else None,
            'tokens_per_cpu_second': tokens / cpu_seconds if cpu_seconds else None, 'peak_bytes': peak}


def cpu_seconds_of(process):
    with open(f'/proc/{process.pid}/stat', encoding='ascii') as file:
        fields = file.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def follow(command):
    """Runs Thimble; the process's CPU seconds at the end of each step, which its progress lines tell."""
    output, cpu_seconds = [], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            output.append(line)
            if re.match(r'\s*\d+/\d+ ', line):
                cpu_seconds.append(cpu_seconds_of(process))
    if process.returncode:
        raise RuntimeError(' '.join(command) + '\n' + ''.join(output))
    return cpu_seconds


def run_thimble(args, activations, compute, name, settings):
    folder = os.path.join(args.out, name)
    shutil.rmtree(folder, ignore_errors=True)
    values = {
        'model.path': args.model, 'data.train': args.data, 'data.validation': 'null', 'data.packing': 'unpacked',
        'data.shuffle': 'false', 'data.seq_len': args.max_tokens, 'schedule.type': 'constant',
        'schedule.warmup_steps': 0, 'optimizer.learning_rate': args.learning_rate, 'training.epochs': 'null',
        'training.steps': args.steps, 'training.accumulation': args.accumulation, 'training.eval_every': 0,
        'training.save_every': 0, 'training.threads': args.threads, 'memory.activations': activations,
        'compute': compute, 'output.export.format': 'none', 'output.folder': folder, **settings}
    command = [args.thimble, 'train', RECIPE]
    for key, value in values.items():
        command += ['--set', f'{key}={value}']
    cpu_seconds = follow(command)
    with open(os.path.join(folder, 'metrics.jsonl'), encoding='utf-8') as file:
        metrics = [json.loads(line) for line in file]
    with open(os.path.join(folder, 'summary.json'), encoding='utf-8') as file:
        memory = json.load(file)['memory']
    # The first step's CPU time would hold the loading; it is part of the warm-up that result_of leaves out.
    steps = [(m['tokens'], m['seconds'], after - before)
             for m, before, after in zip(metrics, [0] + cpu_seconds, cpu_seconds)]
    return result_of([m['loss'] for m in metrics], steps, memory['process']['measured_bytes'])


def run_mode(args, mode):
    if mode.startswith('thimble-'):
        _, activations, compute = mode.split('-')
        return run_thimble(args, activations, compute, mode, {})
    values = {'peer': mode, 'model': args.model, 'data': args.data, 'adapter': args.adapter, 'out': args.out,
              'steps': args.steps, 'accumulation': args.accumulation, 'learning_rate': args.learning_rate,
              'threads': args.threads}
    command = [sys.executable, os.path.abspath(__file__)] + [f'--{key}={value}' for key, value in values.items()]
    # Its messages go to a file, where a slow mode can be watched.
    with open(os.path.join(args.out, f'{mode}.log'), 'w+', encoding='utf-8') as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        if done.returncode:
            log.seek(0)
            raise RuntimeError(log.read())
    return json.loads(done.stdout.splitlines()[-1])


def select_rows(args):
    """The first rows of at most max_tokens tokens, as many as the steps take."""
    from transformers import AutoTokenizer
    encoded = encode_rows(AutoTokenizer.from_pretrained(args.model), args.data)
    with open(args.data, encoding='utf-8') as file:
        lines = [line for line, (ids, _) in zip(file, encoded) if args.min_tokens <= len(ids) <= args.max_tokens]
    wanted = args.steps * args.accumulation
    if len(lines) < wanted:
        raise ValueError(f'{args.data} has {len(lines)} rows of {args.min_tokens} to {args.max_tokens} tokens; '
                         f'{args.steps} steps take {wanted}')
    args.data = os.path.join(args.out, 'rows.jsonl')
    with open(args.data, 'w', encoding='utf-8') as file:
        file.writelines(lines[:wanted])


def deviation(losses, others):
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others))


def best_ratios(results, ours, peers, key):
    """Round by round: the best of ours over the best of the peer's."""
    return [max(mine) / max(other) for mine, other in zip(zip(*(results[mode][key] for mode in ours)),
                                                         zip(*(results[mode][key] for mode in peers)))]


def summarise(results):
    ours = [mode for mode in results if mode in OURS]
    peers = [mode for mode in results if mode in PEERS]
    summary = {'largest relative difference of loss': {
        f'{mine}, {peer}': deviation(results[mine]['losses'], results[peer]['losses'])
        for mine in ours for peer in peers
        if 'model' not in peer and mine.endswith('bf16') == peer.startswith('bf16')}}
    if ours and peers:
        for key in RATES:
            summary[f'{key}, best over best of the peer'] = best_ratios(results, ours, peers, key)
        most = min(max(results[mode]['peak_bytes']) for mode in ours)
        summary['peak_bytes, least over least of the peer'] = most / min(min(results[mode]['peak_bytes'])
                                                                          for mode in peers)
    return summary


def compare(args):
    os.makedirs(args.out, exist_ok=True)
    select_rows(args)
    # One step at rate 0 leaves the adapter as Thimble draws it.
    start = argparse.Namespace(**{**vars(args), 'steps': 1, 'learning_rate': 0})
    run_thimble(start, 'recompute', 'f32', 'start', {'output.export.format': 'peft'})
    args.adapter = os.path.join(args.out, 'start', 'adapter')
    results = {}
    for _ in range(args.rounds):
        for mode in args.modes.split(','):
            result = run_mode(args, mode)
            mine = results.setdefault(mode, {'losses': result['losses'], **{key: [] for key in MEASURED}})
            for key in MEASURED:
                mine[key].append(result[key])
            print(f'{mode}: {result["tokens_per_second"]:.1f} tokens/s, {result["tokens_per_cpu_second"]:.1f} tokens a '
                  f'CPU second, {result["peak_bytes"] / 2**20:.0f} MiB; load average {os.getloadavg()[0]:.1f}',
                  file=sys.stderr, flush=True)
    comparison = {'summary': summarise(results), 'modes': results}
    text = json.dumps(comparison, indent=1)
    with open(os.path.join(args.out, 'comparison.json'), 'w', encoding='utf-8') as file:
        file.write(text + '\n')
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--thimble', default='build/release/thimble')
    parser.add_argument('--model', required=True)
    parser.add_argument('--data', required=True, help='JSON lines of messages')
    parser.add_argument('--out', required=True, help='folder for runs and results')
    parser.add_argument('--modes', default=','.join(MODES))
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--accumulation', type=int, default=4)
    parser.add_argument('--min_tokens', type=int, default=1)
    parser.add_argument('--max_tokens', type=int, default=200)
    parser.add_argument('--learning_rate', type=float, default=2e-4)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--peer', choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument('--adapter', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        run_peer(args)
        return 0
    unknown = set(args.modes.split(',')) - set(MODES)
    if unknown:
        print(f'--modes: {sorted(unknown)} not among {MODES}', file=sys.stderr)
        return 2
    if args.steps <= WARM_UP:
        print(f'--steps: the first {WARM_UP} are warm-up; give more', file=sys.stderr)
        return 2
    compare(args)
    return 0


if __name__ == '__main__':
    sys.exit(main())
