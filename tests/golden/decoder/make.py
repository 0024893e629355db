#!/usr/bin/env python3
"""Makes the golden cases of the whole decoder: tiny random models, computed by transformers and peft.

Needs torch, transformers, peft and safetensors. Writes one folder a case beside this script:

    case.json                  one line: what the case shows, LoRA settings, optimiser
    config.json                in the older (rope_theta, rope_scaling, torch_dtype) or the newer form
    model.safetensors          float32 weights
    adapter/                   PEFT adapter (absent where every weight trains); B is not zero
    expected.safetensors       ids.0, ids.1      int64 [T]: two sequences of different lengths
                               logits.0, .1      float32 [T, vocab]
                               loss              sum over both sequences of -log p(next id) / number of targets
                               grad.<name>       dloss/dparameter; <name> as in the adapter or model file
                               losses            [21]: the loss before the first and after each of 20 AdamW steps on
                                                 the same two sequences, all trainable parameters in one group

Logits, loss and gradients are computed in float64 and stored as float32; the script checks that float32 agrees with
them. The losses of the AdamW steps are those of float32, as in training.
"""

import copy
import json
import os
import shutil
import sys
import tempfile

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

HERE = os.path.dirname(os.path.abspath(__file__))
ALL = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
ADAMW = {'lr': 1e-3, 'betas': (0.9, 0.999), 'eps': 1e-8, 'weight_decay': 0.01}
LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
          'original_max_position_embeddings': 16}
YARN = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 16}


def case(kind, about, form, lora=None, scaling=None, theta=10000.0, **config):
    settings = {'hidden_size': 16, 'intermediate_size': 28, 'num_hidden_layers': 2, 'num_attention_heads': 2,
                'num_key_value_heads': 1, 'vocab_size': 65, 'max_position_embeddings': 64, 'rms_norm_eps': 1e-5,
                'tie_word_embeddings': False}
    settings.update(config)
    if 'head_dim' not in settings and kind in ('llama', 'mistral'):
        settings['head_dim'] = settings['hidden_size'] // settings['num_attention_heads']
    return {'kind': kind, 'about': about, 'form': form, 'lora': lora, 'scaling': scaling, 'theta': theta,
            'config': settings}


CASES = {
    'llama_full': case('llama', 'as many key as query heads, untied, every weight trains', 'older',
                       num_attention_heads=4, num_key_value_heads=4),
    'llama_grouped_tied': case('llama', 'grouped queries, tied', 'newer', dict(r=4, lora_alpha=8, target_modules=ALL),
                               tie_word_embeddings=True, hidden_size=24, intermediate_size=36, num_attention_heads=4,
                               num_key_value_heads=2),
    'llama_rope_linear': case('llama', 'linear rope scaling, LoRA on q and v', 'older',
                              dict(r=2, lora_alpha=4, target_modules=['q_proj', 'v_proj']),
                              {'rope_type': 'linear', 'factor': 4.0}),
    'llama_rope_llama3': case('llama', 'llama3 rope scaling, own head_dim, rank-stabilised LoRA', 'newer',
                              dict(r=4, lora_alpha=6, use_rslora=True, target_modules=ALL), LLAMA3, 500000.0,
                              head_dim=16, tie_word_embeddings=True),
    'llama_rope_llama3_older': case('llama', 'llama3 rope scaling, LoRA on k and o', 'older',
                                    dict(r=3, lora_alpha=5, target_modules=['k_proj', 'o_proj']), LLAMA3, head_dim=12),
    'llama_rope_yarn': case('llama', 'yarn rope scaling, LoRA on the feed-forward layers', 'older',
                            dict(r=3, lora_alpha=3, target_modules=['gate_proj', 'up_proj', 'down_proj']), YARN,
                            head_dim=16),
    'llama_dora': case('llama', 'DoRA on all linear layers', 'newer',
                       dict(r=4, lora_alpha=8, use_dora=True, target_modules=ALL)),
    'mistral_window': case('mistral', 'window shorter than the sequences', 'older',
                           dict(r=4, lora_alpha=16, target_modules=ALL), num_attention_heads=3, head_dim=6,
                           sliding_window=5),
    'mistral_window_full': case('mistral', 'window, every weight trains', 'newer', sliding_window=4,
                                num_key_value_heads=2),
    'qwen2_biases': case('qwen2', 'biases on q, k and v, tied', 'older',
                         dict(r=4, lora_alpha=8, target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj']),
                         tie_word_embeddings=True, rms_norm_eps=1e-6, theta=1000000.0),
    'qwen2_window_full': case('qwen2', 'the second layer has a window (layer_types), every weight and bias trains',
                              'newer', use_sliding_window=True, sliding_window=4, max_window_layers=1,
                              rms_norm_eps=1e-6),
    'qwen2_yarn_dora': case('qwen2', 'yarn, DoRA beside biases, ranks and alphas of their own for some layers', 'newer',
                            dict(r=2, lora_alpha=4, use_dora=True, target_modules=['q_proj', 'v_proj', 'down_proj'],
                                 rank_pattern={'q_proj': 3}, alpha_pattern={'down_proj': 9}), YARN),
    'qwen3_norms': case('qwen3', 'norms on q and k, head_dim unlike hidden / heads, tied', 'newer',
                        dict(r=4, lora_alpha=8, target_modules=ALL), head_dim=12,
                        tie_word_embeddings=True, rms_norm_eps=1e-6, theta=1000000.0),
    'qwen3_dora_rslora': case('qwen3', 'rank-stabilised DoRA on o and down', 'older',
                              dict(r=4, lora_alpha=4, use_dora=True, use_rslora=True,
                                   target_modules=['o_proj', 'down_proj']), head_dim=6, num_attention_heads=4,
                              num_key_value_heads=2),
    'qwen3_full': case('qwen3', 'norms on q and k, untied, every weight trains', 'older', head_dim=6,
                       num_attention_heads=3, num_key_value_heads=3),
    'qwen3_one_layer': case('qwen3', 'LoRA on the second layer alone', 'newer',
                            dict(r=2, lora_alpha=2, target_modules=['q_proj', 'gate_proj'], layers_to_transform=[1]),
                            head_dim=8),
    'bitnet_relu2': case('bitnet', 'ternary weights, int8 inputs, squared ReLU, grouped queries, untied', 'older',
                         hidden_act='relu2', num_attention_heads=4, num_key_value_heads=2),
    'bitnet_silu_tied': case('bitnet', 'ternary weights, int8 inputs, SiLU, tied', 'older', hidden_act='silu',
                             tie_word_embeddings=True, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=1),
    'bitnet_full_precision': case('bitnet', 'the same architecture without a quantization_config', 'newer',
                                  hidden_act='relu2'),
    # Of a rank with which no int8 input comes so close to a tie within 20 steps that float32 rounds it the other way.
    'bitnet_lora': case('bitnet', 'ternary weights with adapters beside them', 'older',
                        dict(r=3, lora_alpha=6, target_modules=ALL), hidden_act='silu'),
}


def ternary(spec):
    return spec['about'].startswith('ternary')


def random_model(spec, generator):
    rope = {'rope_theta': spec['theta'], 'rope_type': 'default'}
    rope.update(spec['scaling'] or {})
    config = AutoConfig.for_model(spec['kind'], rope_parameters=rope, bos_token_id=None, eos_token_id=0,
                                  pad_token_id=None, **spec['config'])
    model = AutoModelForCausalLM.from_config(config, attn_implementation='eager').float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if 'norm' in name:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_((0.5 if 'embed' in name or 'bias' in name else 0.25) * noise)
    return model


def older_form(config):
    """The keys as transformers 4 wrote them."""
    rope = config.pop('rope_parameters')
    config['rope_theta'] = rope.pop('rope_theta')
    config['rope_scaling'] = None if rope['rope_type'] == 'default' else rope
    config['torch_dtype'] = config.pop('dtype')
    config.pop('layer_types', None)
    config['transformers_version'] = '4.45.0'
    return config


def write_model(spec, folder, generator):
    random_model(spec, generator).save_pretrained(folder)
    path = os.path.join(folder, 'config.json')
    with open(path) as f:
        config = json.load(f)
    config = older_form(config) if spec['form'] == 'older' else config
    if ternary(spec):
        config['quantization_config'] = {'quant_method': 'bitnet', 'linear_class': 'autobitlinear',
                                         'quantization_mode': 'online'}
    with open(path, 'w') as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write('\n')
    if os.path.exists(os.path.join(folder, 'generation_config.json')):
        os.remove(os.path.join(folder, 'generation_config.json'))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation='eager', dtype=torch.float32).eval()


def write_adapter(spec, folder, generator):
    model = get_peft_model(load(folder), LoraConfig(task_type='CAUSAL_LM', **spec['lora']))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'lora_' in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter * (1 + 0.1 * noise) if 'magnitude' in name else 0.2 * noise)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        os.makedirs(os.path.join(folder, 'adapter'))
        shutil.copy(os.path.join(temporary, 'adapter_model.safetensors'), os.path.join(folder, 'adapter'))
        with open(os.path.join(temporary, 'adapter_config.json')) as f:
            config = json.load(f)
    config['base_model_name_or_path'] = None
    if isinstance(config['target_modules'], list):
        config['target_modules'].sort()
    with open(os.path.join(folder, 'adapter', 'adapter_config.json'), 'w') as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write('\n')


def load_trainable(spec, folder):
    model = load(folder)
    if spec['lora']:
        model = PeftModel.from_pretrained(model, os.path.join(folder, 'adapter'), is_trainable=True).eval()
    return model


def file_name(name):
    """A parameter's name as in the adapter's or the model's file."""
    return name.replace('.lora_magnitude_vector.default.weight', '.lora_magnitude_vector').replace('.default.', '.')


def loss_of(model, sequences):
    total, count, logits = 0, 0, []
    for ids in sequences:
        logits.append(model(input_ids=ids[None]).logits[0])
        total = total + F.cross_entropy(logits[-1][:-1], ids[1:], reduction='sum')
        count += len(ids) - 1
    return total / count, logits


def gradients(model, sequences):
    loss, logits = loss_of(model, sequences)
    loss.backward()
    result = {'loss': loss.detach()}
    result.update({f'logits.{i}': x.detach() for i, x in enumerate(logits)})
    result.update({'grad.' + file_name(n): p.grad for n, p in model.named_parameters() if p.requires_grad})
    return result


class AllInFloat64:
    """transformers asks for float32 by name in norms, softmax and rope; inside, that name means float64."""

    def __enter__(self):
        self.saved = torch.float32, torch.Tensor.float
        torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double

    def __exit__(self, *error):
        torch.float32, torch.Tensor.float = self.saved


def train(model, sequences):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **ADAMW)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss, _ = loss_of(model, sequences)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    losses.append(loss_of(model, sequences)[0].detach())
    return torch.stack(losses)


def difference(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30)).item()


def make(name, spec, seed):
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    generator = torch.Generator().manual_seed(seed)
    write_model(spec, folder, generator)
    if spec['lora']:
        write_adapter(spec, folder, generator)
    sequences = [torch.randint(0, spec['config']['vocab_size'], (n,), generator=generator) for n in (13, 8)]
    single = gradients(load_trainable(spec, folder), sequences)
    double_model = load_trainable(spec, folder).double()
    with AllInFloat64():
        expected = gradients(copy.deepcopy(double_model), sequences)
        double_losses = train(double_model, sequences)
    losses = train(load_trainable(spec, folder), sequences)
    worst = {kind: max(difference(single[k], v) for k, v in expected.items() if k.startswith(kind))
             for kind in ('logits', 'loss', 'grad')}
    worst['losses'] = difference(losses, double_losses)
    if worst['logits'] > 5e-6 or worst['grad'] > 3e-5 or worst['losses'] > 2e-5 or losses[-1] >= losses[0]:
        raise ValueError(f'{name}: float32 and float64 differ: {worst}, losses {losses}')
    tensors = {k: v.to(torch.float32).contiguous() for k, v in expected.items()}
    tensors.update({f'ids.{i}': ids for i, ids in enumerate(sequences)})
    tensors['losses'] = losses
    save_file(tensors, os.path.join(folder, 'expected.safetensors'))
    about = {'case': name, 'family': spec['kind'], 'about': spec['about'], 'config_form': spec['form'],
             'trains': spec['lora'] or 'every weight', 'adamw': ADAMW, 'steps': 20}
    with open(os.path.join(folder, 'case.json'), 'w') as f:
        f.write(json.dumps(about) + '\n')
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)
    print(f'{name}: {size} bytes, loss {losses[0]:.4f} to {losses[-1]:.4f}, float32 differs by '
          + ', '.join(f'{k} {v:.1e}' for k, v in worst.items()))
    return size


def main():
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    names = sys.argv[1:] or list(CASES)
    total = sum(make(name, CASES[name], 100 + list(CASES).index(name)) for name in names)
    print(f'{len(names)} cases, {total} bytes')


if __name__ == '__main__':
    main()
