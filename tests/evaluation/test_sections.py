"""One section in three languages."""

from nnunet_selma.evaluation.sections import PageSection, Table, as_html, as_latex, as_markdown, html_table

TABLE = Table(
    head=["method", "Dice ↑", "clDice ↑"],
    rows=[["a & b | c", "1", "2"], ["mean", "3", "4"]],
    groups=[("<vessel>", 2)],
    notes=["A note."],
)
SECTIONS = [PageSection("Title", [TABLE, "A < B."]), PageSection("Warnings", [["first", "second & last"]], level=3)]


def test_markdown():
    assert as_markdown(SECTIONS) == (
        "## Title\n\n"
        "| method | <vessel>: Dice ↑ | <vessel>: clDice ↑ |\n| --- | ---: | ---: |\n| a & b / c | 1 | 2 |\n| mean | 3 | 4 |\n\n"
        "A note.\n\nA < B.\n\n### Warnings\n\n- first\n- second & last\n"
    )


def test_latex_leaves_out_what_is_no_table():
    assert as_latex(SECTIONS) == (
        "% Title\n\\begin{tabular}{lcc}\n\\toprule\n& \\multicolumn{2}{c}{\\textless{}vessel\\textgreater{}} \\\\\n"
        "\\cmidrule(lr){2-3}\nmethod & Dice $\\uparrow$ & clDice $\\uparrow$ \\\\\n\\midrule\n"
        "a \\& b | c & 1 & 2 \\\\\nmean & 3 & 4 \\\\\n\\bottomrule\n\\end{tabular}\n% A note.\n\n% A < B.\n"
    )


def test_html():
    assert as_html(SECTIONS) == (
        "<h3>Title</h3>\n<table><tr><th>method</th><th>&lt;vessel&gt;: Dice ↑</th><th>&lt;vessel&gt;: clDice ↑</th></tr>"
        "<tr><td class=name>a &amp; b | c</td><td>1</td><td>2</td></tr>"
        "<tr><td class=name>mean</td><td>3</td><td>4</td></tr></table>\n"
        "<p>A note.</p>\n<p>A &lt; B.</p>\n<h4>Warnings</h4>\n<ul><li>first</li><li>second &amp; last</li></ul>"
    )


def test_only_a_row_of_means_is_bold_and_only_the_best_cells_are_coloured():
    table = Table(head=["method", "Dice"], rows=[["a", "1"], ["mean", "3"]], mean_row=True, best=[(1, 1)])
    marked = html_table(table)
    assert (
        "<tr><td class=name>a</td><td>1</td></tr><tr class=mean><td class=name>mean</td><td class=best>3</td></tr>"
        in marked
    )
