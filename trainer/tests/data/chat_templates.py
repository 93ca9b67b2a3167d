"""Chat templates in the manner of well-known models, each as it is and with the assistant's text marked by hand.

`{BEGIN}` and `{END}` become nothing, or the marks `{% generation %}` and `{% endgeneration %}`.
"""

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"
    "{% if m.role == 'assistant' %}{BEGIN}{{ m.content + '<|im_end|>' }}{END}{% else %}"
    "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>{{ '\n\n' }}"
    "{% if m.role == 'assistant' %}{BEGIN}{{ m.content | trim }}<|eot|>{END}{% else %}"
    "{{ m.content | trim }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>{{ '\n\n' }}{% endif %}"
)
FORGETS_THINKING = (
    "{% for m in messages %}{% set last = loop.last %}<|im_start|>{{ m.role }}{{ '\n' }}"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}{BEGIN}"
    "{% if last %}<think>{{ '\n' }}{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}"
    "{{ '\n' }}</think>{{ '\n\n' }}{% endif %}{{ parts[-1].lstrip('\n') }}<|im_end|>{END}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
INSTRUCTIONS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{BEGIN} {{ m.content }}<|eot|>{END}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
OPENS_THINKING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|A|>"
    "{% if '</think>' in m.content and not loop.last %}{BEGIN}{{ m.content.split('</think>')[-1] }}<|eot|>{END}"
    "{% elif m.content.startswith('<think>\n') %}<think>{{ '\n' }}{BEGIN}{{ m.content[8:] }}<|eot|>{END}"
    "{% else %}{BEGIN}{{ m.content }}<|eot|>{END}{% endif %}"
    "{% else %}<|U|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|A|><think>{{ '\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml with a default system prompt": CHATML,
    "trims white space": TRIMMED,
    "forgets earlier thinking": FORGETS_THINKING,
    "instructions without a header": INSTRUCTIONS,
    "opens the thinking itself": OPENS_THINKING,
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<|U|>", "<|A|>", "<s>"]


def plain(template: str) -> str:
    """Without marks, as models ship it."""
    return template.replace("{BEGIN}", "").replace("{END}", "")


def marked(template: str) -> str:
    """With the assistant's text marked."""
    return template.replace("{BEGIN}", "{% generation %}").replace("{END}", "{% endgeneration %}")
