//! Tables that fit: columns that matter less are left out, then long cells lose their middle. Never wraps a line.

use std::io;

use anstyle::Style;

use super::screen::{EMPHASIS, PLAIN, Screen, styled};
use super::text::shorten;

/// Between two columns.
const GAP: usize = 2;
/// A shortened cell keeps at least this.
const SHORTEST: usize = 10;

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    title: &'static str,
    right: bool,
    /// 0 always stays; the highest goes first.
    expendable: u8,
    shrinks: bool,
}

/// A column of words.
pub(super) const fn words(title: &'static str) -> Column {
    Column { title, right: false, expendable: 0, shrinks: false }
}

/// A column of numbers.
pub(super) const fn numbers(title: &'static str) -> Column {
    Column { title, right: true, expendable: 0, shrinks: false }
}

impl Column {
    /// May be left out; the highest rank goes first.
    pub(super) const fn expendable(mut self, rank: u8) -> Self {
        self.expendable = rank;
        self
    }

    /// May be shortened.
    pub(super) const fn shrinks(mut self) -> Self {
        self.shrinks = true;
        self
    }
}

/// One cell.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn styled(style: Style, text: impl Into<String>) -> Self {
        Self { text: text.into(), style }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(PLAIN, text)
    }
}

/// Rows under titles.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

impl Table {
    pub(super) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.into(), rows: Vec::new(), indent: 0 }
    }

    /// Moved to the right.
    pub(super) fn indented(mut self, indent: usize) -> Self {
        self.indent = indent;
        self
    }

    /// Adds a row of as many cells as there are columns.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn print(&self, screen: &mut Screen) -> io::Result<()> {
        let layout = self.layout(screen.width());
        let titles = |index: usize| {
            let title = self.columns.get(index).map_or("", |column| column.title);
            Cell::styled(EMPHASIS, title)
        };
        screen.line(&self.render(&layout, titles))?;
        for row in &self.rows {
            let cell = |index: usize| row.get(index).cloned().unwrap_or_else(|| "".into());
            screen.line(&self.render(&layout, cell))?;
        }
        Ok(())
    }

    /// Which columns are shown, and how wide.
    fn layout(&self, limit: Option<usize>) -> Vec<(usize, usize)> {
        let mut layout: Vec<(usize, usize)> = (0..self.columns.len())
            .filter(|index| self.cells(*index).any(|cell| !cell.text.is_empty()))
            .map(|index| (index, self.width(index)))
            .collect();
        let Some(limit) = limit else { return layout };
        let total = |layout: &[(usize, usize)]| {
            self.indent + layout.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP)
        };
        while total(&layout) > limit {
            let rank = |index: usize| self.columns.get(index).map_or(0, |column| column.expendable);
            let expendable = layout.iter().map(|(index, _)| rank(*index)).max().unwrap_or_default();
            if expendable == 0 {
                break;
            }
            layout.retain(|(index, _)| rank(*index) != expendable);
        }
        while total(&layout) > limit {
            let shrinks = |index: usize| self.columns.get(index).is_some_and(|column| column.shrinks);
            let widest = layout
                .iter_mut()
                .filter(|(index, width)| shrinks(*index) && *width > SHORTEST)
                .max_by_key(|(_, width)| *width);
            match widest {
                Some((_, width)) => *width -= 1,
                None => break,
            }
        }
        layout
    }

    fn cells(&self, index: usize) -> impl Iterator<Item = &Cell> {
        self.rows.iter().filter_map(move |row| row.get(index))
    }

    fn width(&self, index: usize) -> usize {
        let title = self.columns.get(index).map_or(0, |column| column.title.len());
        self.cells(index).map(Cell::width).max().unwrap_or_default().max(title)
    }

    fn render(&self, layout: &[(usize, usize)], cell: impl Fn(usize) -> Cell) -> String {
        let mut line = " ".repeat(self.indent);
        for (position, (index, width)) in layout.iter().enumerate() {
            if position > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            let cell = cell(*index);
            let text = shorten(&cell.text, *width);
            let padding = " ".repeat(width.saturating_sub(text.chars().count()));
            let unstyled = text.is_empty() || cell.style.is_plain();
            let text = if unstyled { text } else { styled(cell.style, &text) };
            if self.columns.get(*index).is_some_and(|column| column.right) {
                line.push_str(&padding);
                line.push_str(&text);
            } else {
                line.push_str(&text);
                line.push_str(&padding);
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[
            words("NAME").shrinks(),
            numbers("BYTES"),
            words("NOTE").expendable(2),
            words("NODE").expendable(1),
            words("EMPTY"),
        ]);
        table.row(["shop/web-7d4b9c6f5d-x8zq2", "1.5 KiB", "a note", "node-1", ""].map(Cell::from));
        table.row(["shop/db", "12 B", "", "node-2", ""].map(Cell::from));
        table
    }

    fn lines(limit: Option<usize>) -> Vec<String> {
        let table = table();
        let layout = table.layout(limit);
        (0..table.rows.len())
            .map(|row| table.render(&layout, |index| table.rows[row][index].clone()).trim_end().into())
            .collect()
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        assert_eq!(
            lines(None),
            [
                "shop/web-7d4b9c6f5d-x8zq2  1.5 KiB  a note  node-1",
                "shop/db                       12 B          node-2",
            ]
        );
        assert_eq!(table().layout(None).len(), 4);
    }

    #[test]
    fn what_does_not_fit_is_left_out_then_shortened() {
        assert_eq!(lines(Some(45))[0], "shop/web-7d4b9c6f5d-x8zq2  1.5 KiB  node-1");
        assert_eq!(lines(Some(35))[0], "shop/web-7d4b9c6f5d-x8zq2  1.5 KiB");
        assert_eq!(lines(Some(20))[0], "shop/…x8zq2  1.5 KiB");
        for limit in [20, 30, 60, 100] {
            assert!(lines(Some(limit)).iter().all(|line| line.chars().count() <= limit), "{limit}");
        }
    }
}
