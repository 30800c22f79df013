"""Chat templates in three families' styles, each with and without {% generation %} marks: the marked one says what is
trained, and is read by transformers alone. In the texts, [[ and ]] stand for the marks."""

from __future__ import annotations

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}[[{{ message['content'] + "
    "'<|im_end|>' }}{{ '\n' }}]]{% else %}{{ message['content'] + '<|im_end|>' + '\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""With the same output as the template of the published model."""

QWEN = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}"
    "{%- endif %}{{- '# Tools\n<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\n</tools><|im_end|>\n' }}{%- elif messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}[[{{- message.content }}"
    "{%- if message.tool_calls %}{%- for call in message.tool_calls %}{{- '\n<tool_call>\n' }}"
    "{{- call.function | tojson }}{{- '\n</tool_call>' }}{%- endfor %}{%- endif %}{{- '<|im_end|>' }}{{- '\n' }}]]"
    "{%- elif message.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + message.content + "
    "'\n</tool_response><|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""ChatML with tools in the system turn and calls in the assistant's."""

QWEN_THINKING = (
    "{%- set state = namespace(last=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set state.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- if message.role != 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>assistant\n' }}[[{%- if loop.index0 > state.last %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{{- message.content + '<|im_end|>' }}{{- '\n' }}]]{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""The last turn is rendered differently from the ones before it."""

LLAMA3 = (
    "{{- '<|begin_of_text|>' }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{%- if system or tools %}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{%- for tool in tools or [] %}"
    "{{- tool | tojson + '\n\n' }}{%- endfor %}{{- system + '<|eot_id|>' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}[[{%- if message.tool_calls %}"
    "{{- message.tool_calls[0].function | tojson + '<|eot_id|>' }}{%- else %}"
    "{{- message.content | trim + '<|eot_id|>' }}"
    "{%- endif %}]]{%- else %}{{- '<|start_header_id|>' + ('ipython' if message.role == 'tool' else message.role) + "
    "'<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

TEMPLATES = {"SmolLM2": SMOLLM2, "Qwen": QWEN, "Qwen, thinking": QWEN_THINKING, "Llama 3": LLAMA3}
TAKE_TOOLS = {"Qwen", "Llama 3"}


def marked(name: str) -> str:
    return TEMPLATES[name].replace("[[", "{% generation %}").replace("]]", "{% endgeneration %}")


def unmarked(name: str) -> str:
    return TEMPLATES[name].replace("[[", "").replace("]]", "")
