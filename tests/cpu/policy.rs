//! What the repository promises of itself: the crates it is built of, the oldest Rust, where unsafe code stands.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One of these has to be among the alternatives of every licence.
const LICENCES: [&str; 5] = ["MIT", "Apache-2.0", "Zlib", "ISC", "Unicode-3.0"];

/// Crates that are built in more than one version, and why that cannot be helped from here.
const TWICE: [(&str, &str); 5] = [
    ("bitflags", "1: png, for the examples' pictures; 2: wgpu"),
    ("hashbrown", "0.16: gpu-allocator, of wgpu-hal; 0.17: wgpu itself"),
    ("jni-sys", "0.3: of Android, by way of 0.4, its own successor"),
    ("miniz_oxide", "0.8: png, for the examples' pictures; 0.9: flate2"),
    ("syn", "2 and 3: derive macros, in the build alone"),
];

/// The packages that are released, by their folders.
const RELEASED: [&str; 3] = ["", "crates/weightnorm-checkpoint", "crates/weightnorm-cli"];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The value of `key = "value"` in a line.
fn quoted<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.split('"').next())
}

/// The packages of the workspace: folder and name.
fn members() -> Vec<(String, String)> {
    let manifest = read("Cargo.toml");
    let list = manifest.lines().find_map(|line| line.strip_prefix("members = ")).expect("the list of members");
    let folders = list.split('"').skip(1).step_by(2).chain([""]);
    let name = |folder| quoted(&read(Path::new(folder).join("Cargo.toml")), "name").expect("a name").to_owned();
    folders.map(|folder| (folder.to_owned(), name(folder))).collect()
}

/// What is released can be published: each package says what it is, and whose interface it needs in which version.
#[test]
fn policy_packages() {
    let released = members()
        .into_iter()
        .filter(|(folder, _)| !read(Path::new(folder).join("Cargo.toml")).contains("publish = false"));
    assert_eq!(released.map(|(folder, _)| folder).collect::<BTreeSet<_>>(), RELEASED.map(str::to_owned).into());
    let version =
        read("Cargo.toml").lines().find_map(|line| line.strip_prefix("version = ")).expect("a version").to_owned();
    for folder in RELEASED {
        let manifest = read(Path::new(folder).join("Cargo.toml"));
        for key in [
            "description = \"",
            "keywords = [",
            "categories = [",
            "readme = \"",
            "license.workspace",
            "repository.workspace",
            "[package.metadata.docs.rs]",
        ] {
            assert!(manifest.contains(&format!("\n{key}")), "{folder}: no {key}");
        }
        assert!(manifest.contains("\n[lints]\nworkspace = true\n"), "{folder}: the lints of the workspace");
        for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
            assert!(root().join(folder).join(licence).exists(), "{folder}: {licence}");
        }
        for line in manifest.lines().filter(|line| line.contains("path = \"../")) {
            assert!(line.contains(&format!("version = {version}")), "{folder}: {line}");
        }
    }
}

/// All that may ever be built, with every feature and for every platform: from crates.io, each in one version.
#[test]
fn policy_crates() {
    let lock = read("Cargo.lock");
    let ours = members();
    let ours: BTreeSet<&str> = ours.iter().map(|(_, name)| name.as_str()).collect();
    let mut versions = BTreeMap::<&str, Vec<&str>>::new();
    for package in lock.split("[[package]]").skip(1) {
        let name = quoted(package, "name").expect("every package has one");
        versions.entry(name).or_default().push(quoted(package, "version").expect("every package has one"));
        match quoted(package, "source") {
            None => assert!(ours.contains(name), "{name} has no source"),
            Some(source) => assert_eq!(source, REGISTRY, "of {name}"),
        }
    }
    assert!(versions.len() > 100, "only {} packages were found", versions.len());
    versions.retain(|_, versions| versions.len() > 1);
    let (found, listed): (BTreeSet<_>, BTreeSet<_>) =
        (versions.keys().copied().collect(), TWICE.map(|(n, _)| n).into());
    assert_eq!(found, listed, "crates in more than one version, and those listed in TWICE: {versions:?}");
}

/// Licences, and the oldest Rust of each crate. For the manifests of other platforms' crates cargo may need the
/// network.
#[test]
#[ignore = "may need the network"]
fn policy_manifests() {
    let arguments = ["metadata", "--format-version", "1", "--all-features", "--locked"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100, "only {} packages were found", packages.len());
    let ours = version(quoted(&read("Cargo.toml"), "rust-version").expect("rust-version"));
    for package in packages {
        let name = &package["name"];
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} states no licence"));
        assert!(is_allowed(licence), "{name}: {licence}");
        if let Some(rust) = package["rust_version"].as_str() {
            assert!(version(rust) <= ours, "{name} wants Rust {rust}");
        }
    }
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').take(2).map(|part| part.parse().expect("a number")).collect()
}

/// Takes `A OR (B AND C)` as `(A OR B) AND C`, which allows no more.
fn is_allowed(licence: &str) -> bool {
    let plain = licence.replace('/', " OR ").replace(['(', ')'], "");
    plain.split(" AND ").all(|part| part.split(" OR ").any(|name| LICENCES.contains(&name.trim())))
}

#[test]
fn policy_reads_licences() {
    for allowed in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND NCSA", "", "MITX"] {
        assert!(!is_allowed(refused), "{refused}");
    }
}

/// The oldest Rust: Cargo.toml says it, README says it to users, CI builds with it.
#[test]
fn policy_oldest_rust() {
    let rust = quoted(&read("Cargo.toml"), "rust-version").expect("rust-version").to_owned();
    assert!(read("README.md").contains(&format!("Rust {rust} or later")), "README.md: Rust {rust} or later");
}

/// Every Rust file below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// A file is read in one sitting.
#[test]
fn policy_lengths() {
    for path in RELEASED.iter().flat_map(|folder| rust_files(&root().join(folder).join("src"))) {
        let lines = std::fs::read_to_string(&path).expect("it was listed").lines().count();
        assert!(lines <= 450, "{}: {lines} lines", path.display());
    }
}

/// Unsafe code of the crates stands in one file, each block below its reason. The lint refuses it everywhere else: what
/// could slip is an attribute that takes the lint back.
#[test]
fn policy_unsafe() {
    assert!(read("Cargo.toml").contains("\nunsafe_code = \"deny\""), "the lint");
    let (word, lint) = (["un", "safe"].concat(), ["unsafe", "_code"].concat());
    let mut lifted = vec![];
    for path in RELEASED.iter().flat_map(|folder| rust_files(&root().join(folder).join("src"))) {
        let text = std::fs::read_to_string(&path).expect("it was listed");
        let name = path.strip_prefix(root()).expect("it is below").display().to_string();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (i, line) in lines.iter().enumerate() {
            let is_comment = line.starts_with("//");
            if !is_comment && line.contains(&format!("({lint}")) {
                lifted.push(name.clone());
            }
            let opens = !is_comment
                && [" {", " impl", " fn", " extern"].iter().any(|after| line.contains(&(word.clone() + after)));
            if opens {
                let comment = lines[..i].iter().rev().take_while(|line| line.starts_with("//"));
                assert!(
                    comment.into_iter().any(|line| line.contains("SAFETY: ")),
                    "{name}:{}: no SAFETY comment",
                    i + 1
                );
            }
        }
    }
    assert_eq!(lifted, ["src/unchecked.rs"], "files of the crates that lift the lint, once each");
}

/// No two files of a package import each other: what both need stands in a third one, below them.
#[test]
fn policy_no_two_files_import_each_other() {
    let files = Files::read(&root().join("src"));
    let imports = |a: &str, b: &str| files.imports(a, &files.texts[a]).contains(b);
    // What it has to see: a name of the crate's root, a name of a module, a path in the code, a parent's name.
    for (a, b) in [
        ("record", "gpu"),
        ("gpu", "owner"),
        ("kernel", "unchecked"),
        ("linear/backward/record", "linear/backward"),
        ("linear/record", "linear"),
    ] {
        assert!(imports(a, b), "{a} imports {b}");
    }
    for folder in RELEASED {
        let circles = Files::read(&root().join(folder).join("src")).circles();
        assert!(circles.is_empty(), "{folder}: files that import each other: {circles:#?}");
    }
}

#[test]
fn policy_circles_of_imports_are_found() {
    let text = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let texts = [
        text("low", "use crate::{High, other};\npub struct Low;\n"),
        text("high", "use crate::low::{self, Low};\npub struct High;\n"),
        text("other", "fn f() -> crate::part::Part { }\n"),
        text("part", "pub use below::Below;\npub struct Part;\n"),
        text(
            "part/below",
            "use super::Part;\nuse crate::{\n    high::High,\n    other::{f, g},\n};\npub struct Below;\n",
        ),
    ];
    let exported = ["low::Low", "high::High", "part::Below"].map(|path| {
        let path: Vec<String> = path.split("::").map(str::to_owned).collect();
        (path[1].clone(), path)
    });
    let mut files = Files { texts: BTreeMap::from(texts), exported: BTreeMap::from(exported) };
    assert_eq!(files.circles(), ["high and low"]);
    files.texts.insert("other".to_owned(), "use crate::Below;\n".to_owned());
    assert_eq!(files.circles(), ["high and low", "other and part/below"]);
}

/// The files of a package by their path below `src`, without comments, tests and what only the docs import.
struct Files {
    texts: BTreeMap<String, String>,
    /// Names of the crate's root, by the path that they are exported from.
    exported: BTreeMap<String, Vec<String>>,
}

impl Files {
    fn read(src: &Path) -> Files {
        let mut texts = BTreeMap::new();
        for path in rust_files(src) {
            let name = path.strip_prefix(src).expect("it is below").with_extension("").display().to_string();
            let text = std::fs::read_to_string(&path).expect("it was listed");
            let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().replace("#[cfg(doc)]\nuse ", "doc ");
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            texts.insert(name, lines.map(|line| format!("{line}\n")).collect::<String>());
        }
        let lib = texts.remove("lib").or_else(|| texts.remove("main")).expect("src/lib.rs or src/main.rs");
        let exports =
            lib.split("\npub use ").skip(1).flat_map(|rest| paths(rest.split(';').next().unwrap_or_default()));
        let exported = exports.filter_map(|path| Some((path.last()?.clone(), path))).collect();
        Files { texts, exported }
    }

    /// Files that import each other.
    fn circles(&self) -> Vec<String> {
        let graph: Vec<_> = self.texts.iter().map(|(file, text)| (file, self.imports(file, text))).collect();
        let imports = |a: &str, b: &str| graph.iter().any(|(file, of)| *file == a && of.contains(b));
        let pairs = graph.iter().flat_map(|(a, of)| of.iter().map(move |b| (*a, b)));
        pairs.filter(|(a, b)| a < b && imports(b, a)).map(|(a, b)| format!("{a} and {b}")).collect()
    }

    /// The files that a file imports, by any path in its text.
    fn imports(&self, file: &str, text: &str) -> BTreeSet<String> {
        let here: Vec<String> = file.split('/').map(str::to_owned).collect();
        let mut found = BTreeSet::new();
        // What a file hands on it does not use.
        let text = format!("\n{text}");
        let mut parts = text.split("\npub use ");
        let first = parts.next().unwrap_or_default().to_owned();
        let text = parts.filter_map(|part| part.split_once(';')).fold(first, |text, (_, rest)| text + rest);
        // `use` with all of its tree, then paths in the code.
        let uses = text.split("use ").skip(1).map(|rest| rest.split(';').next().unwrap_or_default());
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        for tree in uses.chain(words.filter(|word| word.contains("::"))) {
            for path in paths(tree) {
                let (first, rest) = path.split_first().expect("a path has a name");
                let absolute = match first.as_str() {
                    "crate" => rest.to_vec(),
                    "super" => [&here[..here.len() - 1], rest].concat(),
                    // A module of its own.
                    child if self.texts.contains_key(&format!("{file}/{child}")) => [&here[..], &path[..]].concat(),
                    _ => continue,
                };
                found.extend(self.file_of(&absolute).filter(|other| other != file));
            }
        }
        found
    }

    /// The file in which a path of the crate is declared.
    fn file_of(&self, path: &[String]) -> Option<String> {
        let depth = (1..=path.len()).rev().find(|&n| self.texts.contains_key(&path[..n].join("/")));
        let Some(depth) = depth else {
            // A name of the root.
            let path = self.exported.get(path.first()?)?;
            return if self.texts.contains_key(&path[0]) { self.file_of(path) } else { None };
        };
        let module = path[..depth].join("/");
        let Some(name) = path.get(depth) else { return Some(module) };
        let declares = |text: &str| {
            let kinds = ["struct", "enum", "trait", "fn", "const", "static", "type"];
            kinds.iter().any(|kind| {
                ["<", "(", " ", ":", ";"].iter().any(|after| text.contains(&format!("{kind} {name}{after}")))
            })
        };
        let below = format!("{module}/");
        let mut children = self.texts.iter().filter(|(file, _)| file.starts_with(&below));
        let child = children.find(|(_, text)| declares(text)).map(|(file, _)| file.clone());
        if declares(&self.texts[&module]) { Some(module) } else { child.or(Some(module)) }
    }
}

/// The paths of a tree of imports: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let (mut all, mut above, mut path) = (vec![], vec![], vec![]);
    let mut name = String::new();
    let mut begin = 0;
    for c in tree.chars().chain([',']) {
        match c {
            '{' => {
                above.push(begin);
                begin = path.len();
            }
            ',' | '}' => {
                path.extend(Some(std::mem::take(&mut name)).filter(|name| !name.is_empty() && name != "self"));
                if path.len() > begin || above.is_empty() {
                    all.push(path.clone());
                }
                path.truncate(begin);
                if c == '}' {
                    begin = above.pop().unwrap_or(0);
                    path.truncate(begin);
                }
            }
            ':' => path.extend(Some(std::mem::take(&mut name)).filter(|name| !name.is_empty())),
            c if c.is_alphanumeric() || c == '_' => name.push(c),
            _ => {}
        }
    }
    all.retain(|path| !path.is_empty());
    all
}

/// What people read: README in one sitting, no line wider than a screen but in tables and output, and no link to
/// nowhere.
#[test]
fn policy_documents() {
    let documents = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from).into_iter();
    let documents = documents.chain(RELEASED.map(|folder| Path::new(folder).join("README.md")));
    let documents = documents.chain(["crates/weightnorm-cli/README-python.md", "web/README.md"].map(PathBuf::from));
    let folder = std::fs::read_dir(root().join("docs")).expect("docs").map(|entry| entry.expect("an entry").path());
    let more = folder.filter(|path| path.extension().is_some_and(|e| e == "md")).collect::<Vec<_>>();
    assert!(more.len() >= 2, "{more:?}");
    let mut links = 0;
    for path in documents.map(|name| root().join(name)).chain(more) {
        let (name, text) = (path.display(), std::fs::read_to_string(&path).expect("it was listed"));
        let mut in_code = false;
        for (number, line) in (1..).zip(text.lines()) {
            in_code ^= line.starts_with("```");
            let is_output = in_code && line.contains("tiles  ");
            assert!(line.starts_with('|') || is_output || line.chars().count() <= 120, "{name}:{number} is too long");
        }
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            if !target.starts_with("https://") {
                links += 1;
                assert!(path.with_file_name(file).exists(), "{name}: {target} is not there");
                let is_heading = |line: &str| line.starts_with('#') && line.to_lowercase().ends_with(heading);
                assert!(heading.is_empty() || text.lines().any(is_heading), "{name}: {target} is not there");
            }
        }
    }
    assert!(links >= 8, "{links}");
    assert!(read("README.md").lines().count() <= 200, "README.md has more than 200 lines");
}
