//! Tables of text that fit the terminal.

use crate::text::elide;

/// Rows under a header, columns two spaces apart.
///
/// Where the table is wider than it may be, its flexible columns are shortened, the widest first, and its names only when
/// that is not enough.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// A column: its title, and how it is set.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    title: String,
    right: bool,
    shrinks: Shrinks,
}

/// Whether the text of a column may be shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shrinks {
    Never,
    First,
    Last,
}

impl Column {
    /// Text that is shown whole.
    pub(crate) fn left(title: &str) -> Self {
        Self { title: title.to_owned(), right: false, shrinks: Shrinks::Never }
    }

    /// Text that may be shortened.
    pub(crate) fn flexible(title: &str) -> Self {
        Self { title: title.to_owned(), right: false, shrinks: Shrinks::First }
    }

    /// Names, which are shortened last.
    pub(crate) fn name(title: &str) -> Self {
        Self { title: title.to_owned(), right: false, shrinks: Shrinks::Last }
    }

    /// Numbers, aligned at their end.
    pub(crate) fn right(title: &str) -> Self {
        Self { title: title.to_owned(), right: true, shrinks: Shrinks::Never }
    }
}

const GAP: usize = 2;
/// Shorter than this a name tells nothing.
const MIN_FLEXIBLE: usize = 12;

impl Table {
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row with one text per column.
    pub(crate) fn row(&mut self, cells: impl Into<Vec<String>>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The table as lines; `width` is how many characters fit, `None` for any number.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        // A column without any content says nothing.
        let shown: Vec<usize> = (0..self.columns.len())
            .filter(|&at| self.rows.iter().any(|row| !row[at].is_empty()))
            .collect();
        let mut widths: Vec<usize> = shown.iter().map(|&at| self.natural_width(at)).collect();
        if let Some(limit) = width {
            self.shrink(&shown, &mut widths, limit);
        }
        let mut out = String::new();
        if self.columns.iter().any(|column| !column.title.is_empty()) {
            let titles = self.columns.iter().map(|column| column.title.as_str());
            self.line(&mut out, &shown, &widths, &titles.collect::<Vec<_>>());
        }
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            self.line(&mut out, &shown, &widths, &cells);
        }
        out
    }

    fn natural_width(&self, at: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[at].chars().count());
        cells.chain([self.columns[at].title.chars().count()]).max().unwrap_or(0)
    }

    fn shrink(&self, shown: &[usize], widths: &mut [usize], limit: usize) {
        let total =
            |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        for turn in [Shrinks::First, Shrinks::Last] {
            while total(widths) > limit {
                let can_shrink = (0..widths.len()).filter(|&at| {
                    self.columns[shown[at]].shrinks == turn && widths[at] > MIN_FLEXIBLE
                });
                match can_shrink.max_by_key(|&at| widths[at]) {
                    Some(widest) => widths[widest] -= 1,
                    None => break,
                }
            }
        }
    }

    fn line(&self, out: &mut String, shown: &[usize], widths: &[usize], cells: &[&str]) {
        let mut line = String::new();
        for (&at, &width) in shown.iter().zip(widths) {
            let cell = elide(cells[at], width);
            let padding = " ".repeat(width - cell.chars().count());
            if self.columns[at].right {
                line.push_str(&padding);
                line.push_str(&cell);
            } else {
                line.push_str(&cell);
                line.push_str(&padding);
            }
            line.push_str(&" ".repeat(GAP));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new([Column::flexible("slot"), Column::left("empty"), Column::right("bits")]);
        table.row(["encoder.layer.0.attention.weight_quantizer".into(), String::new(), "8".into()]);
        table.row(["conv".into(), String::new(), "16".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        assert_eq!(
            table().render(None),
            "\
slot                                        bits
encoder.layer.0.attention.weight_quantizer     8
conv                                          16
"
        );
    }

    #[test]
    fn names_are_shortened_last() {
        let mut table = Table::new([Column::name("slot"), Column::flexible("tags")]);
        table.row(["conv1.weight_quantizer".into(), "#before/conv #parameter/weight".into()]);
        assert_eq!(
            table.render(Some(40)).lines().last(),
            Some("conv1.weight_quantizer  #before…r/weight")
        );
    }

    #[test]
    fn a_narrow_table_shortens_what_may_be_shortened() {
        assert_eq!(
            table().render(Some(30)),
            "\
slot                      bits
encoder.lay…ht_quantizer     8
conv                        16
"
        );
        // Never below the width at which names still tell something.
        assert_eq!(table().render(Some(5)).lines().next(), Some("slot          bits"));
    }
}
