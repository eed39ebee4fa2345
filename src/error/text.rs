//! Shapes and other people's words, in one line of a message.
use std::fmt;

/// A shape, of which the first axes tell enough.
pub(super) struct Shape<'a>(pub &'a [usize]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [first @ .., _, _] if first.len() > 6 => {
                f.write_str("[")?;
                first[..6].iter().try_for_each(|size| write!(f, "{size}, "))?;
                write!(f, "..] of rank {}", self.0.len())
            }
            all => write!(f, "{all:?}"),
        }
    }
}

/// A text of somebody else's, in one line, of which beginning and end tell enough.
pub(super) struct Short<'a>(pub &'a str);

impl Short<'_> {
    const LENGTH: usize = 140;

    fn line(&self) -> String {
        // wgpu's headings say nothing.
        let lines = self.0.lines().map(str::trim);
        let lines = lines.filter(|line| !["", "Validation Error", "Caused by:"].contains(line));
        let line = lines.collect::<Vec<_>>().join(": ");
        let count = line.chars().count();
        if count <= Self::LENGTH {
            return line;
        }
        let begin: String = line.chars().take(Self::LENGTH / 2).collect();
        let end: String = line.chars().skip(count - Self::LENGTH / 2).collect();
        format!("{} .. {}", begin.trim_end(), end.trim_start())
    }
}

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.line())
    }
}
