//! The public interface beside its committed listing, docs/api.txt: a change of it shows in review as one of that file.
//!
//! Read from the source, which rustfmt keeps in a known form, so that no version of rustdoc matters.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// With this variable set the listing is written instead of compared.
const UPDATE: &str = "WEIGHTNORM_UPDATE_API";

#[test]
fn api_is_as_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (listing, file) = (listing(&root.join("src")), root.join("docs/api.txt"));
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&file, &listing).expect("docs/api.txt can be written");
    }
    let committed = std::fs::read_to_string(&file).expect("docs/api.txt");
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (now, before) = (lines(&listing), lines(&committed));
    let (new, gone): (Vec<_>, Vec<_>) = (now.difference(&before).collect(), before.difference(&now).collect());
    assert!(
        listing == committed,
        "the interface is not that of docs/api.txt. If it is meant to change: {UPDATE}=1 cargo test --test cpu api\n\
         new: {new:#?}\ngone: {gone:#?}"
    );
}

/// What a few lines of it have to be: a listing of nothing would stay as it is.
#[test]
fn api_listing_sees_what_there_is() {
    let listing = listing(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    for line in [
        "Gpu",
        "    pub fn row_norms(&self, v: &Tensor, axis: Axis, eps: Eps) -> Result<Tensor, Error>",
        "    #[non_exhaustive] pub struct Options",
        "    Kept(usize)",
        "    pub activation: Activation",
        "    pub const ALL: [Tile; 17]",
        "    NoDevice { adapter: String, reason: String }",
        "    pub fn all_on(gpu: &Gpu) -> impl Iterator<Item = Tile>",
        "    impl<'a> From<&'a Tensor> for Weight<'a>",
        "    const DTYPE: DType",
        "    pub fn activate(y: f64, activation: Activation) -> f64",
        "cpu::SgdState",
    ] {
        assert!(listing.lines().any(|l| l == line || (l.ends_with(line.trim()) && l.starts_with("    #["))), "{line}");
    }
    assert!(
        !listing.contains("pub(crate)") && !listing.contains("internals") && !listing.contains("cooperative_lanes")
    );
}

/// Every public item under its path, with its fields or variants, methods and traits.
fn listing(src: &Path) -> String {
    let mut names = BTreeMap::new();
    let lib = read(&src.join("lib.rs"));
    names.insert(String::new(), exported(&lib));
    for (i, line) in lib.lines().enumerate() {
        let hidden = i > 0 && lib.lines().nth(i - 1) == Some("#[doc(hidden)]");
        if let Some(module) = line.strip_prefix("pub mod ").and_then(|m| m.strip_suffix(';')).filter(|_| !hidden) {
            let file = [format!("{module}.rs"), format!("{module}/mod.rs")].map(|f| src.join(f));
            let text = read(file.iter().find(|f| f.exists()).expect("the file of a module"));
            let mut public = exported(&text);
            public.extend(text.lines().filter_map(|l| declared(l).map(str::to_owned)));
            names.insert(format!("{module}::"), public);
        }
    }
    let mut items = BTreeMap::<String, Vec<String>>::new();
    let mut files = vec![];
    rust_files(src, &mut files);
    files.sort();
    for file in files {
        let path = file.strip_prefix(src).expect("it is below").with_extension("");
        let module = format!("{}::", path.iter().next().expect("a name").to_string_lossy());
        let prefix = if names.contains_key(&module) { module } else { String::new() };
        collect(&read(&file), &prefix, &names[&prefix], &mut items);
    }
    let mut text = String::new();
    for (name, mut lines) in items {
        // The declaration, then the rest in an order that moving code does not change.
        let rest = lines.iter().position(|l| l == "}").map_or(0, |end| end + 1);
        lines[rest..].sort();
        text += &name;
        lines.iter().filter(|line| *line != "}").for_each(|line| text += &format!("\n    {line}"));
        text += "\n";
    }
    text
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("lib.rs") {
            files.push(path);
        }
    }
}

/// The names of `pub use module::{A, B};`.
fn exported(text: &str) -> BTreeSet<String> {
    let uses = text.split("\npub use ").skip(1).map(|rest| rest.split(';').next().unwrap_or_default());
    let names = uses.flat_map(|path| path.rsplit("::").next().unwrap_or_default().split(','));
    names.map(|name| name.trim_matches(['{', '}', ' ', '\n']).to_owned()).filter(|name| !name.is_empty()).collect()
}

/// The name that a line at the left margin declares as public.
fn declared(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ")?;
    let kinds = ["struct ", "enum ", "trait ", "fn ", "async fn ", "const fn ", "const ", "static ", "type "];
    let rest = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// The type that a heading of an `impl` is for.
fn implemented(heading: &str) -> &str {
    let of = heading.rsplit_once(" for ").map_or_else(
        || {
            let rest = heading.trim_start_matches("impl");
            if rest.starts_with('<') { rest.split_once("> ").map_or("", |(_, rest)| rest) } else { rest.trim_start() }
        },
        |(_, of)| of,
    );
    of.split(['<', ' ']).next().unwrap_or_default()
}

fn collect(text: &str, prefix: &str, public: &BTreeSet<String>, items: &mut BTreeMap<String, Vec<String>>) {
    let mut lines = text.lines().peekable();
    // The attributes above.
    let mut above = String::new();
    while let Some(line) = lines.next() {
        if line.starts_with("#[cfg(test)]") {
            return;
        }
        if line.starts_with("#[") {
            above += &format!("{line} ");
            continue;
        }
        if line.starts_with("//") {
            continue;
        }
        let above = std::mem::take(&mut above);
        if let Some(name) = declared(line).filter(|name| public.contains(*name)) {
            let heading = signature(line, &mut lines);
            let item = items.entry(format!("{prefix}{name}")).or_default();
            let is_type = ["pub struct", "pub enum", "pub trait"].iter().any(|kind| line.starts_with(kind));
            let mut all = vec![above + heading.trim_end_matches([' ', '{', ';', '='])];
            if is_type && heading.ends_with('{') {
                let all_are_public = !line.starts_with("pub struct");
                all.extend(inner(&mut lines, |l| all_are_public || l.starts_with("pub ")));
            }
            all.push("}".to_owned());
            item.splice(0..0, all);
        } else if line.starts_with("impl") {
            let heading = signature(line, &mut lines);
            let heading = heading.trim_end_matches([' ', '{', '}']);
            let name = implemented(heading).to_owned();
            if !public.contains(&name) {
                continue;
            }
            let item = items.entry(format!("{prefix}{name}")).or_default();
            if heading.contains(" for ") {
                item.push(heading.to_owned());
            } else if !line.ends_with('}') {
                item.extend(inner(&mut lines, |l| l.starts_with("pub ")));
            }
        }
    }
}

/// A line, and those after it up to the one that ends its heading, as one without that end.
fn signature<'a>(first: &str, lines: &mut impl Iterator<Item = &'a str>) -> String {
    let mut all = first.trim().to_owned();
    let ends = |all: &str| {
        let open = all.matches(['(', '[']).count() > all.matches([')', ']']).count();
        all.ends_with(['{', ';', '}']) || (all.ends_with(',') && !open) || all.contains("] = ") || all.ends_with(" =")
    };
    while !ends(&all) {
        let Some(line) = lines.next() else { break };
        all += " ";
        all += line.trim();
    }
    if all.starts_with("pub const ") && !all.contains(" fn ") {
        all.truncate(all.find(" = ").unwrap_or(all.len()));
    }
    all.replace("( ", "(").replace(", )", ")")
}

/// What stands one step to the right, up to the end at the left margin: what is wanted of it, without bodies and comments.
fn inner<'a>(lines: &mut impl Iterator<Item = &'a str>, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let (mut found, mut hidden, mut above) = (vec![], false, String::new());
    while let Some(line) = lines.next() {
        if line == "}" {
            break;
        }
        // Deeper lines are bodies.
        let Some(text) = line.strip_prefix("    ").filter(|text| !text.starts_with([' ', '}', ')'])) else { continue };
        if text.is_empty() || text.starts_with("//") {
            continue;
        }
        if text.starts_with("#[") {
            hidden |= text == "#[doc(hidden)]";
            above += if text.starts_with("#[cfg") { text } else { "" };
            continue;
        }
        if wanted(text) && !hidden {
            let mut whole = signature(text, lines);
            if whole.ends_with('{') && !whole.contains('(') {
                // The fields of a variant.
                let fields = lines.map_while(|l| l.strip_prefix("        ").map(str::trim));
                fields.filter(|l| !l.starts_with(['/', '#'])).for_each(|l| whole = format!("{whole} {l}"));
                whole = whole.trim_end_matches(',').to_owned() + " }";
            }
            let space = if above.is_empty() { "" } else { " " };
            found.push(format!("{above}{space}{}", whole.trim_end_matches([' ', '{', ';', ',', '='])));
        }
        (hidden, above) = (false, String::new());
    }
    found
}
