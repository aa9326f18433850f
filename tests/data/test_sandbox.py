"""A template that somebody sends reaches neither the interpreter nor the machine, and changes no row."""

from __future__ import annotations

import pytest

from mlora_sched.data.jinja import Template, TemplateFault

ROW = {"question": "a", "rows": [1], "mapping": {"a": 1}}

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ question.__class__ }}{{ question.__class__.__base__ }}",
    "{{ (question|attr('__class__')).__mro__ }}",
    "{{ question['__class__']['__mro__'] }}",
    "{{ '{0.__class__.__mro__}'.format(question) }}",
    "{{ ('{0.__cla' ~ 'ss__.__mro__}').format(question) }}",
    "{{ '{x.__class__.__mro__}'.format_map({'x': question}) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ strftime_now.__self__.__class__.__mro__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__code__.co_consts }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace(x=1) %}{% set ns.__class__ = dict %}{{ ns.__class__.__mro__ }}",
    "{{ dict.__globals__ }}",
    "{{ rows.append(2) }}",
    "{{ mapping.update(b=2) }}",
    "{{ mapping.pop('a') }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out(source: str) -> None:
    try:
        text = Template(source).text(ROW)
    except TemplateFault:
        pass
    else:
        assert not any(word in text for word in ("<class", "<built-in", "object at", "uid=", "root:")), text
    assert ROW == {"question": "a", "rows": [1], "mapping": {"a": 1}}
