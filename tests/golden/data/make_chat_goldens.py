"""Renders golden conversations with jinja2 as transformers does: chat_goldens.json.

Run with the folder of test assets as argument (jinja2 needed):
  python tests/golden/data/make_chat_goldens.py ASSETS
Templates that the assets lack (Llama 3, Mistral, Zephyr, SmolLM2, Alpaca) stand below as published with the models.
"""
import json
import os
import sys

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
MISTRAL_01 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
MISTRAL_02 = MISTRAL_01.replace("eos_token + ' '", "eos_token")
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
ALPACA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% set messages = messages[1:] %}"
    "{% else %}{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n' }}{% endif %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\n' + message['content'] + eos_token }}{% if not loop.last or add_generation_prompt %}{{ '\n\n' }}"
    "{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}")

U, A, S, T = "user", "assistant", "system", "tool"
CONVERSATIONS = [
    [(U, "Hi"), (A, "Hello there.")],
    [(S, "Be brief."), (U, "  What is 2+2?\n"), (A, " 4 \n"), (U, "And 3+3?"), (A, "6")],
    [(U, "één\n\n世界 🙂"), (A, "\n\nOK\u00a0")],
    [(U, "Q1"), (A, "<think>\nhm\n</think>\n\nA1"), (U, "Q2"), (A, "<think>\nlet me see\n\n</think>\n\nA2")],
    [(U, "Weather?"), (A, "I look."), (T, "{\"t\": 20}"), (T, "sun\"ny"), (A, "Warm.")],
    [(S, "Go."), (U, "x"), (A, "")],
]


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)

    def raise_exception(message):
        raise ValueError(message)

    env.globals["raise_exception"] = raise_exception
    return env


def main():
    assets = sys.argv[1]
    read = lambda name: open(os.path.join(assets, "tokenizers", name)).read()
    config = lambda name: json.loads(read(name + "/tokenizer_config.json"))["chat_template"]
    templates = {
        "qwen2": (config("qwen2"), "", "<|im_end|>"),
        "qwen2.5": (config("qwen2.5"), "", "<|im_end|>"),
        "qwen3": (config("qwen3"), "", "<|im_end|>"),
        "smollm2": (SMOLLM2, "<|im_start|>", "<|im_end|>"),
        "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
        "llama3.1": (read("chat_templates/meta-llama-Llama-3.1-8B-Instruct.jinja"), "<|begin_of_text|>", "<|eot_id|>"),
        "llama3.2": (read("chat_templates/meta-llama-Llama-3.2-3B-Instruct.jinja"), "<|begin_of_text|>", "<|eot_id|>"),
        "mistral0.1": (MISTRAL_01, "<s>", "</s>"),
        "mistral0.2": (MISTRAL_02, "<s>", "</s>"),
        "zephyr": (ZEPHYR, "<s>", "</s>"),
        "alpaca": (ALPACA, "<s>", "</s>"),
    }
    out = {"templates": {}, "cases": []}
    for name, (template, bos, eos) in templates.items():
        out["templates"][name] = {"bos": bos, "eos": eos, "template": template}
        compiled = environment().from_string(template)
        for conversation in CONVERSATIONS:
            messages = [{"role": r, "content": c} for r, c in conversation]
            # These templates have no rule for tool messages; Qwen 2's opens an answer after every user message.
            if name in ("qwen2", "smollm2", "zephyr", "alpaca", "llama3") and any(r == T for r, _ in conversation):
                continue
            for generate in (False, True):
                given = messages[:-1] if generate else messages
                try:
                    text = compiled.render(messages=given, bos_token=bos, eos_token=eos, add_generation_prompt=generate,
                                           tools=None, date_string="26 Jul 2024")
                except ValueError:
                    continue
                out["cases"].append({"template": name, "messages": given, "generate": generate, "text": text})
    folder = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, "chat_goldens.json"), "w") as file:
        json.dump(out, file, ensure_ascii=False, indent=1)
        file.write("\n")
    print(len(out["cases"]), "cases")


if __name__ == "__main__":
    main()
