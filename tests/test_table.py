"""minibert/data/table.py: texts with labels, and what is said where a file is not of the form."""

import csv
import hashlib
import json
import os
from itertools import permutations
from pathlib import Path

import pytest

from minibert.data.table import Layout, natural, read_texts
from minibert.errors import InputError


@pytest.fixture
def put(tmp_path):
    """Write a file, and give its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def limit():
    """The longest cell that the csv module reads by default."""
    before = csv.field_size_limit(131_072)
    yield 131_072
    csv.field_size_limit(before)


def test_csv(put):
    content = b"label,text\nb,one two\na,three\n"
    table = read_texts(put("a.csv", content))
    assert table.texts == ["one two", "three"]
    assert table.labels == ["b", "a"]
    assert (table.pairs, table.groups, table.splits, table.windows, table.ranges) == (None,) * 5
    assert table.name == "a.csv"
    assert table.sha256 == hashlib.sha256(content).hexdigest()


def test_tsv(put):
    table = read_texts(put("a.tsv", 'text\tlabel\none, two\ta\n"three\tfour"\tb\n'))
    assert table.texts == ["one, two", "three\tfour"]
    assert table.labels == ["a", "b"]


def test_jsonl(put):
    lines = [{"text": "one", "label": 1}, {"label": "b", "text": "zwei\nDrei ü\u2028", "other": [1]}]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n  \n"
    table = read_texts(put("a.jsonl", text))
    assert table.texts == ["one", "zwei\nDrei ü\u2028"]
    assert table.labels == ["1", "b"]
    assert table.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_suffix_may_be_in_capitals(put):
    assert read_texts(put("A.CSV", "text,label\none,a\n")).texts == ["one"]
    assert read_texts(put("A.TSV", "text\tlabel\none\ta\n")).texts == ["one"]


def test_folder(put, tmp_path):
    for name in ("b/2.txt", "b/10.txt", "a/1.txt"):
        put(f"texts/{name}", f"text of {name}")
    put("texts/a/notes.md", "not a text")
    put("texts/readme.txt", "of no class")
    put("texts/.git/1.txt", "hidden")
    table = read_texts(tmp_path / "texts")
    assert table.texts == ["text of a/1.txt", "text of b/10.txt", "text of b/2.txt"]
    assert table.labels == ["a", "b", "b"]
    assert table.name == "texts"
    assert table.left_out == "1 file(s) other than .txt, 1 file(s) outside the class folders"


def test_hash_of_a_folder_sees_content_names_and_classes(put, tmp_path):
    hashes = set()
    for folder, name, content in (("1", "a/x", "t"), ("2", "a/x", "u"), ("3", "a/y", "t"), ("4", "b/x", "t")):
        put(f"{folder}/{name}.txt", content)
        hashes.add(read_texts(tmp_path / folder).sha256)
    assert len(hashes) == 4
    put("5/a/x.txt", "t")
    assert read_texts(tmp_path / "5").sha256 == read_texts(tmp_path / "1").sha256


def test_optional_columns(put):
    table = read_texts(put("a.csv", "split,text,label,text_b,group\ntrain,one,a,uno,p1\ntest,two,b,due,p2\n"))
    assert table.pairs == ["uno", "due"]
    assert table.groups == ["p1", "p2"]
    assert table.splits == ["train", "test"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "utf8"])
@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,label\né,a\n"), ("a.jsonl", '{"text":"é","label":"a"}')])
def test_a_byte_order_mark_is_no_part_of_the_first_column(put, name, content, charset):
    assert read_texts(put(name, b"\xef\xbb\xbf" + content.encode()), charset).texts == ["é"]


def test_quoted_newlines_quotes_and_commas(put):
    table = read_texts(put("a.csv", 'text,label\r\n"one, ""two""\r\nthree\nfour",a\r\nfive,b\r\n'))
    assert table.texts == ['one, "two"\r\nthree\nfour', "five"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_texts_longer_than_the_csv_modules_limit(put, name, limit):
    text = "word " * 40_000
    delimiter = "," if name == "a.csv" else "\t"
    assert len(text) > limit
    assert read_texts(put(name, f"text{delimiter}label\n{text}{delimiter}a\n")).texts == [text]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("content", ["text,label\none,a,b\n", 'text,label\n"one,a\n'])
def test_the_csv_modules_limit_is_put_back_after_an_error(put, content, limit):
    with pytest.raises(InputError):
        read_texts(put("a.csv", content))
    assert csv.field_size_limit() == limit


def test_missing_file_names_what_is_bundled(tmp_path):
    with pytest.raises(InputError, match=r"no\.csv: no such file.*motion"):
        read_texts(tmp_path / "no.csv")


@pytest.mark.parametrize("name", ["a.txt", "a.xlsx", "a"])
def test_unknown_kind(put, name):
    with pytest.raises(InputError, match=r"unknown kind; give \.csv, \.tsv, \.jsonl, \.parquet, .*\.npz or a folder"):
        read_texts(put(name, "text,label\none,a\n"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,klass\none,a\n", "no column 'label'; found text, klass"),
        ("body,label\none,a\n", "no column 'text'; found body, label"),
        ("a,b\n1,2\n", "no column 'label' or 'text'; found a, b"),
        (
            "body;klass\none;a\n",
            "no column 'label' or 'text'; found body, klass; --text-column and --label-column NAME",
        ),
        (
            "text|label\none|a\n",
            'found one, \'text|label\': is "|" the delimiter\\? --delimiter "|"'.replace("|", "\\|"),
        ),
        ("text,label,text\none,a,b\n", "two columns are called 'text'"),
        ("", "no column .* found nothing"),
        ("text,label\n", "no examples"),
        ("text,label\none,a\ntwo\n", "line 3: no 'label'"),
        ("text,label,split\none,a,train\ntwo,b\n", "line 3: no 'split'; found label, split, text"),
        ("text,label\none,a\n  ,a\n", "line 3: empty 'text'"),
        ("text,label\none,\n", "line 2: empty 'label'"),
        ("text,label,group\none,a,x\ntwo,b,\n", "line 3: empty 'group'"),
        ("text,label\none,a\ntwo, and three,a\n", "line 3: more cells than columns; quote"),
        ('text,label\none,a\n"two,a\n', "line 3: unexpected end"),
        ('text,label\n"one" two,a\n', "line 2: .*expected"),
        ('text,"label\none,a\n', "line 1: unexpected end"),
        ('text,label\n"one\ntwo",a\n,b\n', "line 4: empty 'text'"),
        ("text,label\none,a\n\n\n,b\n", "line 5: empty 'text'"),
    ],
)
def test_csv_errors_say_what_and_where(put, content, words):
    with pytest.raises(InputError, match=f"a\\.csv.*{words}"):
        read_texts(put("a.csv", content))


OWN = Layout({"text": "review", "label": "stars", "text_b": "answer"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,stars,review,answer,split\nx,5,one,uno,train\ny,1,two,due,test\n"),
        ("a.csv", "text;stars;review;answer;split\nx;5;one;uno;train\ny;1;two;due;test\n"),
        ("a.csv", '"text"\t"stars"\treview\tanswer\tsplit\nx\t5\tone\tuno\ttrain\ny\t1\ttwo\tdue\ttest\n'),
        ("a.tsv", "text\tstars\treview\tanswer\tsplit\nx\t5\tone\tuno\ttrain\ny\t1\ttwo\tdue\ttest\n"),
        ("a.jsonl", '{"review": "one", "stars": 5, "answer": "uno", "split": "train", "text": "x"}\n'
                    '{"review": "two", "stars": 1, "answer": "due", "split": "test"}\n'),
    ],
)  # fmt: skip
def test_columns_of_other_names(put, name, content):
    table = read_texts(put(name, content), layout=OWN)
    assert (table.texts, table.labels, table.pairs) == (["one", "two"], ["5", "1"], ["uno", "due"])
    assert (table.splits, table.groups) == (["train", "test"], None)


def test_a_column_has_one_use(put):
    """A name that was given to the text is no longer that of second texts."""
    path = put("a.csv", "text_b,label\none,a\n")
    assert read_texts(path, layout=Layout({"text": "text_b"})).pairs is None


@pytest.mark.parametrize(
    ("delimiter", "content"),
    [
        ("|", "text|label\none, two|a\n"),
        (";", "text,x;text;label\n1;one, two;a\n"),
        ("tab", "text\tlabel\none, two\ta\n"),
    ],
)
def test_a_delimiter_that_is_named(put, delimiter, content):
    assert read_texts(put("a.csv", content), layout=Layout(delimiter=delimiter)).texts == ["one, two"]


def test_a_delimiter_is_found_out_from_the_header_alone(put):
    """Not from the rows: a text may hold any of them."""
    assert read_texts(put("a.csv", 'label;text\na;"one;two"\nb;,,,\n')).texts == ["one;two", ",,,"]
    assert read_texts(put("b.csv", "label,text\na,;;;;\n")).texts == [";;;;"]
    assert read_texts(put("c.csv", "text;label;x, y, or z\none;a;x\n")).texts == ["one"]
    with pytest.raises(InputError, match="found one, 'text,label': is \",\" the delimiter"):
        read_texts(put("a.tsv", "text,label\none,a\n"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "review,stars\none,5\n", "no column 'answer'; found review, stars; --text-b-column NAME: what it"),
        ("a.csv", "review,stars,answer\n ,5,uno\n", "line 2: empty 'review'"),
        (
            "a.jsonl",
            '{"review": "one", "answer": "uno"}',
            "line 1: no 'stars'; found answer, review; --label-column NAME",
        ),
        ("a.jsonl", "[1]", "line 1: not an object with 'review' and 'stars'"),
    ],
)
def test_errors_call_columns_as_the_file_does(put, name, content, words):
    with pytest.raises(InputError, match=words):
        read_texts(put(name, content), layout=OWN)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "one", "label": "a"}\n\n{"text": "two"\n', "line 3: not JSON"),
        ("text,label\n", "line 1: not JSON"),
        ('["one", "a"]\n', "line 1: not an object"),
        (
            '{"text": "one", "label": "a"}\n{"text": "two", "klass": "a"}\n',
            "line 2: no 'label'; found klass, label, text",
        ),
        ('{"text": "one", "label": null}\n', "line 1: no 'label'; found text"),
        ("{}\n", "line 1: no 'text'; found nothing"),
        ('{"text": "", "label": "a"}\n', "line 1: empty 'text'"),
        ('{"text": "one", "label": " "}\n', "line 1: empty 'label'"),
        ("\n \n", "no examples"),
    ],
)
def test_jsonl_errors_say_what_and_where(put, content, words):
    with pytest.raises(InputError, match=f"a\\.jsonl.*{words}"):
        read_texts(put("a.jsonl", content))


def test_empty_folder(tmp_path, put):
    with pytest.raises(InputError, match="no class folders"):
        read_texts(tmp_path)
    put("one.txt", "of no class")
    put("a/one.md", "not a text")
    with pytest.raises(InputError, match="no class folders"):
        read_texts(tmp_path)


def test_empty_text_in_a_folder_is_named(tmp_path, put):
    put("a/1.txt", "one")
    put("a/2.txt", "\n")
    with pytest.raises(InputError, match=r"2\.txt: empty 'text'"):
        read_texts(tmp_path)


@pytest.mark.parametrize("name", ["texts/a.csv", "texts/a.jsonl", "texts/k/a.txt"])
def test_another_encoding_is_named_and_can_be_given(put, tmp_path, name):
    texts = {".csv": "text,label\ncafé,a\n", ".jsonl": '{"text": "café", "label": "a"}\n', ".txt": "café"}
    path = put(name, texts[name[name.rindex(".") :]].encode("cp1252"))
    path = path.parent.parent if name.endswith(".txt") else path
    with pytest.raises(InputError, match=r"a\.\w+: byte \d+ is not utf-8; .*--charset cp1252"):
        read_texts(path)
    assert read_texts(path, "cp1252").texts == ["café"]


def test_position_of_the_byte_that_does_not_fit(put):
    with pytest.raises(InputError, match="byte 14 is not utf-8"):
        read_texts(put("a.csv", b"text,label\ncaf\xe9,a\n"))
    with pytest.raises(InputError, match="byte 0 is not utf-8"):
        read_texts(put("a.csv", b"\xe9"))
    with pytest.raises(InputError, match="UTF-16 stream does not start with BOM: not utf-16; convert"):
        read_texts(put("a.csv", b"text,label\n"), "utf-16")


def test_unknown_charset(put):
    with pytest.raises(InputError, match="--charset utf-9: no such encoding"):
        read_texts(put("a.csv", "text,label\none,a\n"), "utf-9")


def test_order_does_not_depend_on_how_the_names_were_found():
    """float("nan") is a number that stands nowhere in an order."""
    assert {tuple(sorted(names, key=natural)) for names in permutations(["nan", "2", "10", "NaN", "inf"])} == {
        ("2", "10", "inf", "NaN", "nan")
    }


def test_labels_come_in_natural_order(put):
    names = ["b", "10", "a", "2", "-1", "B", "1.5"]
    ordered = ["-1", "1.5", "2", "10", "B", "a", "b"]
    assert sorted(names, key=natural) == ordered
    table = read_texts(put("a.csv", "text,label\n" + "".join(f"x,{name}\n" for name in names)))
    assert sorted(set(table.labels), key=table.label_order) == ordered


def test_folders_and_other_spellings_of_utf_8_have_no_byte_order_mark_either(put, tmp_path):
    put("texts/a/1.txt", b"\xef\xbb\xbfone")
    assert read_texts(tmp_path / "texts").texts == ["one"]
    assert read_texts(put("a.csv", b"\xef\xbb\xbftext,label\none,a\n"), "utf_8").texts == ["one"]


@pytest.mark.parametrize("column", ["text", "label"])
def test_half_a_surrogate_pair_is_named(put, column):
    row = {"text": "one", "label": "a"}
    lines = [row, row | {column: "x\ud83d"}]
    with pytest.raises(InputError, match=f"line 2: '{column}' holds half a surrogate pair"):
        read_texts(put("a.jsonl", "\n".join(map(json.dumps, lines))))


def test_the_folder_one_is_in_has_a_name(put, tmp_path, monkeypatch):
    put("texts/a/1.txt", "one")
    monkeypatch.chdir(tmp_path / "texts")
    assert read_texts(Path(".")).name == "texts"


def test_what_of_a_folder_is_not_read_is_counted(put, tmp_path):
    for name in ("a/1.txt", "a/2.TXT", "b/1.txt", "b/deep/1.txt", "b/3.html", "b/4.html", "b/.DS_Store"):
        put(f"texts/{name}", name)
    (tmp_path / "texts" / "empty").mkdir()
    os.mkfifo(tmp_path / "texts" / "a" / "pipe.txt")  # reading it would wait for ever
    table = read_texts(tmp_path / "texts")
    assert table.texts == ["a/1.txt", "a/2.TXT", "b/1.txt"]
    assert table.left_out == "3 file(s) other than .txt, 1 subfolder(s), 1 class(es) without texts"


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(InputError, match="a pipe or a device; give a file"):
        read_texts(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["text", "label", "text_b", "group", "split"])
def test_two_columns_of_one_name(put, name):
    columns = ["text", "label", "text_b", "group", "split"]
    row = ["one", "a", "b", "g", "train", "more"]
    for twice in (name, f" {name} "):
        with pytest.raises(InputError, match=f"two columns are called '{name}'"):
            read_texts(put("a.csv", f"{','.join([*columns, twice])}\n{','.join(row)}\n"))
    assert read_texts(put("a.csv", "text,label,x,x\none,a,1,2\n")).texts == ["one"]  # of no use here


def test_blanks_around_a_name_do_not_make_a_class(put):
    table = read_texts(put("a.csv", "text, label , group,split\n one,pos,g, train\ntwo, pos ,g ,val\n"))
    assert (table.texts, table.labels) == ([" one", "two"], ["pos", "pos"])
    assert (table.groups, table.splits) == (["g", "g"], ["train", "val"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": ["one"], "label": "a"}', "'text' is a list; it must be a text or a number"),
        ('{"text": "one", "label": {"a": 1}}', "'label' is a dict; it must be"),
        ('{"text": "one", "label": NaN}', "'label' is nan; fill it"),
        ('{"text": "one", "label": -1e999}', "'label' is -inf; fill it"),
        ('{"text": "one", "label": "a", "label": "b"}', "not JSON: a name stands twice in one object"),
        ('{"text": "one", "label": "a", "other": %s}' % ("[" * 100_000), "not JSON: it is nested too deeply"),
        ("[" * 100_000, "not JSON: it is nested too deeply"),
        ('{"text": "one", "label": %s}' % ("1" * 5000), "not JSON: Exceeds the limit"),
    ],
)  # fmt: skip
def test_json_that_is_no_row(put, line, words):
    with pytest.raises(InputError, match=f"line 2: {words}"):
        read_texts(put("a.jsonl", '{"text": "one", "label": 1.5}\n' + line + "\n"))
