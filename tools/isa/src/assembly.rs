//! What the compilers print, as far as it counts: blocks, loops, multiply-adds, loads and the waits for them.
//!
//! Four languages: RADV's assembly, or its own IR where it has no disassembler for the chip (AMD); NAK's assembly and
//! that of NVIDIA's own disassembler; ir3's (Qualcomm). Apple's compiler prints none.

/// An instruction.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Instruction {
    multiply_add: bool,
    reads_shared: bool,
    /// Bytes that a lane loads from a buffer, and the counter (of 8) that tells when they are there, or the first register.
    load: Option<(u64, usize)>,
    wait: Wait,
}

/// Which loads an instruction waits for.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Wait {
    #[default]
    None,
    /// For all but so many of the last ones.
    AllBut(usize),
    /// For those of these counters, a bit each.
    Counters(u8),
    /// For those into these registers, a bit each, which it reads or writes.
    Registers([u128; 2]),
}

/// A basic block.
#[derive(Debug, Default)]
struct Block {
    code: Vec<Instruction>,
    /// Blocks from which it is reached.
    before: Vec<usize>,
}

/// A program, and its loops: the numbers of their blocks, in the order of the text.
#[derive(Debug, Default)]
pub struct Program {
    blocks: Vec<Block>,
    loops: Vec<Vec<usize>>,
}

/// Figures of the loop that does a program's work: of all of it, if it has no loop.
#[derive(Debug, Default, PartialEq)]
pub struct Loop {
    /// Instructions of one turn: those of an inner loop as often as it runs.
    pub instructions: usize,
    pub multiply_adds: usize,
    /// Waits for all loads.
    pub full_waits: usize,
    /// The most bytes that a lane has asked for and not waited for.
    pub bytes_in_flight: u64,
}

impl Program {
    pub fn parse(text: &str) -> Self {
        if text.contains("BB0") {
            parse(text, radv)
        } else if text.contains(".text.k:") {
            parse(text, sass)
        } else if text.contains("block.u 0 ") || text.contains("block 0 ") {
            parse(text, nak)
        } else {
            parse(text, ir3)
        }
    }

    /// The block of some loop that does the work: with the most multiply-adds among those that read workgroup memory
    /// (the steps of a tiled product, not its rare second way), else among all; the longest where there is none.
    fn hottest(&self) -> Option<usize> {
        let rank = |&n: &usize| {
            let code = &self.blocks[n].code;
            let count = code.iter().filter(|i| i.multiply_add).count();
            let in_loop = self.loops.iter().any(|l| l.contains(&n));
            (in_loop, count > 0 && code.iter().any(|i| i.reads_shared), count, code.len())
        };
        (0..self.blocks.len()).max_by_key(rank)
    }

    /// The loop that does a product's work, `per_turn` multiply-adds a turn, of which an inner loop does a part at a time:
    /// the innermost one around the hottest block that loads from a buffer.
    pub fn product_loop(&self, per_turn: Option<usize>) -> Loop {
        let mut around: Vec<_> = self.loops.iter().filter(|l| self.hottest().is_some_and(|n| l.contains(&n))).collect();
        around.sort_by_key(|l| l.iter().map(|&n| self.blocks[n].code.len()).sum::<usize>());
        let loads = |l: &&&Vec<usize>| l.iter().any(|&n| self.blocks[n].code.iter().any(|i| i.load.is_some()));
        let Some(outer) = around.iter().find(loads).or(around.last()) else { return self.figures(&self.all()) };
        let mut figures = self.figures(outer);
        if let (Some(per_turn), Some(inner)) = (per_turn, around.first().filter(|inner| *inner != outer)) {
            let inner = self.figures(inner);
            let again = (per_turn / inner.multiply_adds.max(1)).saturating_sub(1);
            figures.instructions += again * inner.instructions;
            figures.multiply_adds += again * inner.multiply_adds;
        }
        figures
    }

    /// The loop that keeps most bytes in flight, or the whole program if no loop keeps as many: where a kernel that
    /// memory limits does its work.
    pub fn memory_loop(&self) -> Loop {
        let all = self.loops.iter().map(|l| self.figures(l)).chain([self.figures(&self.all())]);
        all.max_by_key(|l| (l.bytes_in_flight, std::cmp::Reverse(l.instructions))).unwrap_or_default()
    }

    fn all(&self) -> Vec<usize> {
        (0..self.blocks.len()).collect()
    }

    fn figures(&self, blocks: &[usize]) -> Loop {
        let code: Vec<_> = blocks.iter().flat_map(|&n| &self.blocks[n].code).copied().collect();
        Loop {
            instructions: code.len(),
            multiply_adds: code.iter().filter(|i| i.multiply_add).count(),
            full_waits: code.iter().filter(|i| matches!(i.wait, Wait::AllBut(0))).count(),
            bytes_in_flight: bytes_in_flight(&code),
        }
    }

    /// Each branch back to a block closes a loop: of those from which the branch is reached without that block.
    fn find_loops(&mut self) {
        for first in 0..self.blocks.len() {
            let mut members = std::collections::BTreeSet::from([first]);
            let mut open: Vec<_> = self.blocks[first].before.iter().copied().filter(|&last| last >= first).collect();
            let closed = !open.is_empty();
            while let Some(block) = open.pop() {
                if members.insert(block) {
                    open.extend(&self.blocks[block].before);
                }
            }
            if closed {
                self.loops.push(members.into_iter().collect());
            }
        }
    }
}

/// Of two turns, since loads may run ahead of the turn that uses them.
fn bytes_in_flight(code: &[Instruction]) -> u64 {
    let mut on_their_way: Vec<(u64, usize)> = vec![];
    let mut most = 0;
    for instruction in code.iter().chain(code) {
        match instruction.wait {
            Wait::None => {}
            Wait::AllBut(count) => drop(on_their_way.drain(..on_their_way.len().saturating_sub(count))),
            Wait::Counters(bits) => on_their_way.retain(|(_, counter)| bits >> counter & 1 == 0),
            Wait::Registers(bits) => on_their_way.retain(|&(bytes, first)| {
                (first..first + bytes.div_ceil(4) as usize).all(|r| bits[r / 128] >> (r % 128) & 1 == 0)
            }),
        }
        on_their_way.extend(instruction.load);
        most = most.max(on_their_way.iter().map(|(bytes, _)| bytes).sum());
    }
    most
}

/// What a line is.
enum Line<'a> {
    /// The start of a block with a name.
    Label(&'a str),
    /// The same, with the names of the blocks from which it is reached, between commas.
    Reached(&'a str, &'a str),
    Code(Instruction),
    /// The block to which it branches, and whether always.
    Branch(&'a str, bool),
    Other,
}

fn parse(text: &str, read: fn(&str) -> Line<'_>) -> Program {
    let mut blocks = vec![Block::default()];
    let mut names = vec![];
    let (mut branches, mut reached) = (vec![], vec![]);
    let mut goes_on = true;
    // A block ends behind a branch and before a label.
    let begin = |blocks: &mut Vec<Block>, goes_on: &mut bool| {
        let before = if std::mem::replace(goes_on, true) { vec![blocks.len() - 1] } else { vec![] };
        blocks.push(Block { code: vec![], before });
    };
    for line in text.lines().map(str::trim) {
        match read(line) {
            Line::Label(name) => {
                begin(&mut blocks, &mut goes_on);
                names.push((name, blocks.len() - 1));
            }
            Line::Reached(name, before) => {
                blocks.push(Block::default());
                names.push((name, blocks.len() - 1));
                reached.push((blocks.len() - 1, before));
            }
            Line::Code(instruction) => blocks.last_mut().expect("there is one").code.push(instruction),
            Line::Branch(target, always) => {
                let last = blocks.len() - 1;
                blocks[last].code.push(Instruction::default());
                branches.push((last, target));
                goes_on = !always;
                begin(&mut blocks, &mut goes_on);
            }
            Line::Other => {}
        }
    }
    for (from, target) in branches {
        if let Some((_, to)) = names.iter().find(|(name, _)| *name == target) {
            blocks[*to].before.push(from);
        }
    }
    for (to, before) in reached {
        let number = |name: &str| names.iter().find(|(n, _)| *n == name.trim()).map(|(_, block)| *block);
        blocks[to].before.extend(before.split(',').filter_map(number));
    }
    let mut program = Program { blocks, loops: vec![] };
    program.find_loops();
    program
}

/// The number behind `word` in a text.
fn number_behind(text: &str, word: &str) -> Option<u64> {
    let digits = text.split_once(word)?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

fn radv(line: &str) -> Line<'_> {
    const MULTIPLY_ADDS: [&str; 6] = ["v_fma", "v_pk_fma", "v_dual_fma", "v_mad", "v_dot", "v_wmma"];
    const INSTRUCTIONS: [&str; 8] = ["s_", "v_", "ds_", "buffer_", "global_", "scratch_", "flat_", "p_"];
    if line.starts_with("BB") {
        return Line::Label(line.trim_end_matches(':'));
    }
    // The IR names what an instruction defines: `v1: %9:v[3] = v_fma_f32 ..`.
    let code = line.split_once(" = ").map_or(line, |(_, code)| code);
    let code = code.split(';').next().unwrap_or_default();
    let operation = code.split_whitespace().next().unwrap_or_default();
    if !INSTRUCTIONS.iter().any(|p| operation.starts_with(p)) {
        return Line::Other;
    }
    let width = operation.strip_prefix("buffer_load_").or(operation.strip_prefix("global_load_"));
    let bytes = width.map(|width| match width {
        "dwordx4" | "b128" => 16,
        "dwordx3" | "b96" => 12,
        "dwordx2" | "b64" => 8,
        "dword" | "b32" => 4,
        _ => 2,
    });
    let all_but = if operation == "s_waitcnt" {
        number_behind(code, "vmcnt(")
    } else if operation.starts_with("s_wait_loadcnt") {
        number_behind(code, "imm:").or(number_behind(code, "loadcnt("))
    } else {
        None
    };
    let instruction = Instruction {
        multiply_add: MULTIPLY_ADDS.iter().any(|m| operation.starts_with(m)),
        reads_shared: operation.starts_with("ds_read") || operation.starts_with("ds_load"),
        load: bytes.map(|bytes| (bytes, 0)),
        wait: all_but.map_or(Wait::None, |count| Wait::AllBut(count as usize)),
    };
    if operation.starts_with("s_cbranch") || operation == "s_branch" {
        let target = code.split_whitespace().nth(1).unwrap_or_default().trim_start_matches("block:");
        return Line::Branch(target, operation == "s_branch");
    }
    Line::Code(instruction)
}

fn nak(line: &str) -> Line<'_> {
    if line.starts_with("block") {
        // `block.u 4 L6 [2, 3] -> {`
        let before = line.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(before, _)| before);
        return line.split_whitespace().nth(1).map_or(Line::Other, |number| Line::Reached(number, before));
    }
    let (code, remark) = line.split_once("//").unwrap_or((line, ""));
    let code = code.split_once(" = ").map_or(code, |(_, code)| code);
    let mut words = code.split_whitespace().skip_while(|word| word.starts_with('@'));
    let Some(operation) = words.next().filter(|o| !o.starts_with('}')) else { return Line::Other };
    let bits = operation.starts_with("ld.global").then(|| operation.rsplit_once(".b")?.1.parse::<u64>().ok()).flatten();
    let counter = number_behind(remark, "wr:").unwrap_or(7) as usize;
    let mask = remark.split_once("wt=").and_then(|(_, mask)| u8::from_str_radix(mask.get(..6)?, 2).ok());
    let instruction = Instruction {
        multiply_add: ["ffma", "hfma2", "hmma"].iter().any(|m| operation.starts_with(m)),
        reads_shared: operation.starts_with("ld.shared"),
        load: bits.map(|bits| (bits / 8, counter)),
        wait: mask.map_or(Wait::None, Wait::Counters),
    };
    Line::Code(instruction)
}

/// nvdisasm: `/*0860*/  @!P0 LDG.E.128.CONSTANT R4, desc[UR6][R4.64] ;`. What an instruction waits for is not printed: it
/// is what its registers say.
fn sass(line: &str) -> Line<'_> {
    if let Some(name) = line.strip_suffix(':').filter(|name| name.starts_with(".L_")) {
        return Line::Label(name);
    }
    let Some((_, code)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) else { return Line::Other };
    let code = code.split(';').next().unwrap_or_default().trim();
    let predicate = code.starts_with('@');
    let code = if predicate { code.split_once(' ').map_or("", |(_, code)| code.trim()) } else { code };
    let (operation, operands) = code.split_once(' ').unwrap_or((code, ""));
    if operation.is_empty() {
        return Line::Other;
    }
    if operation == "EXIT" && !predicate {
        return Line::Branch("", true);
    }
    if operation.starts_with("BRA") {
        let target = operands.split_once("`(").and_then(|(_, name)| name.split_once(')')).map_or("", |(name, _)| name);
        return Line::Branch(target, !predicate && operation == "BRA");
    }
    let mut registers = [0; 2];
    let words = operands.split(|c: char| !c.is_ascii_alphanumeric());
    for register in words.filter_map(|word| word.strip_prefix('R')?.parse::<usize>().ok()).filter(|&r| r < 255) {
        registers[register / 128] |= 1 << (register % 128);
    }
    let parts: Vec<&str> = operation.split('.').collect();
    let bytes = (parts[0] == "LDG").then(|| match parts.iter().find_map(|part| part.parse::<u64>().ok()) {
        Some(bits) => bits / 8,
        None if parts.contains(&"U16") => 2,
        None => 4,
    });
    let first = operands.split(',').next().and_then(|word| word.trim().strip_prefix('R')?.parse().ok());
    Line::Code(Instruction {
        multiply_add: parts[0] == "FFMA",
        reads_shared: parts[0] == "LDS",
        load: bytes.and_then(|bytes| Some((bytes, first?))),
        wait: Wait::Registers(registers),
    })
}

fn ir3(line: &str) -> Line<'_> {
    if line.starts_with('l') && line.ends_with(':') {
        return Line::Label(line.trim_end_matches(':'));
    }
    // Flags in parentheses stand before the operation: `(sy)` waits for all loads.
    let mut rest = line;
    let mut all = false;
    while let Some((flag, behind)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
        all |= flag == "sy";
        rest = behind.trim_start();
    }
    let operation = rest.split_whitespace().next().unwrap_or_default();
    if operation.is_empty()
        || operation.starts_with([';', '@'])
        || !operation.starts_with(|c: char| c.is_ascii_lowercase())
    {
        return Line::Other;
    }
    let bytes = if operation.starts_with("isam") {
        ["(xyzw)", "(xyz)", "(xy)", "(x)"]
            .iter()
            .find(|mask| rest.contains(**mask))
            .map(|mask| 4 * (mask.len() as u64 - 2))
    } else if operation.starts_with("ldib") {
        Some(4 * number_behind(operation, "32.").unwrap_or(1))
    } else {
        None
    };
    let instruction = Instruction {
        multiply_add: operation.starts_with("mad.f"),
        reads_shared: operation.starts_with("ldl"),
        load: bytes.map(|bytes| (bytes, 0)),
        wait: if all { Wait::AllBut(0) } else { Wait::None },
    };
    match rest.split_once('#') {
        Some((_, target)) if operation == "jump" || operation.starts_with("br") => {
            Line::Branch(target.trim(), operation == "jump")
        }
        _ => Line::Code(instruction),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_in_a_loop() {
        let text = "BB0:\n\ts_mov_b32 s0, 0\nBB1:\n\tbuffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen ; e0\n\
                    \tbuffer_load_dwordx2 v[4:5], v4, s[0:3], 0 offen\n\ts_waitcnt vmcnt(0)\nBB2:\n\
                    \tds_read_b128 v[8:11], v7\n\tv_fma_f32 v1, v2, v3, v1\n\tv_fma_f32 v1, v2, v3, v1\n\
                    \ts_cbranch_scc1 BB2 ; bf\nBB3:\n\ts_cbranch_scc1 BB1 ; bf\nBB4:\n\ts_endpgm\n";
        let found = Program::parse(text).product_loop(Some(6));
        assert_eq!(found, Loop { instructions: 8 + 2 * 4, multiply_adds: 6, full_waits: 1, bytes_in_flight: 24 });
    }

    #[test]
    fn counters_and_flags() {
        let nvidia = "block.u 0 L0 [] -> {\n   r1 = mov rZ // delay=1\n} -> [1]\nblock 1 L1 [0, 1] -> {\n\
                      r2..6 = ld.global.a64.constant.b128 [r8..10+rZ] // delay=2 rd:0 wr:1\n\
                      r6 = ld.global.a64.constant.b32 [r8..10+rZ], p2 // delay=2 wr:2\n\
                      r7 = ffma r2 r6 r7 // delay=1 wt=000010\n@!p0  bra pT L1 // delay=1\n} -> [1, 2]\n";
        let found = Program::parse(nvidia).memory_loop();
        assert_eq!(found, Loop { instructions: 4, multiply_adds: 1, full_waits: 0, bytes_in_flight: 4 + 20 });
        let ptxas = ".text.k:\n/*00*/  MOV R1, RZ ;\n.L_x_3:\n/*10*/ LDG.E.128.CONSTANT R4, desc[UR6][R2.64] ;\n\
                     /*20*/ @!P0 LDG.E R8, desc[UR6][R2.64+0x10] ;\n/*30*/ FFMA R9, R6, R6, R9 ;\n/*40*/ FADD R9, R8, R9 ;\n\
                     /*50*/ @P1 BRA `(.L_x_3) ;\n/*60*/ EXIT ;\n.L_x_4:\n/*70*/ BRA `(.L_x_4);\n";
        let found = Program::parse(ptxas).memory_loop();
        assert_eq!(found, Loop { instructions: 5, multiply_adds: 1, full_waits: 0, bytes_in_flight: 20 });
        let qualcomm = "l3:\nisam.v.base0 (u32)(xyzw)r9.x, r8.x, s#0, t#0\n(sy)(rpt1)mad.f32 r1.x, r9.x, r2.x, r1.x\n\
                        (ss)br p0.x, #l3\nend\n";
        let found = Program::parse(qualcomm).memory_loop();
        assert_eq!(found, Loop { instructions: 3, multiply_adds: 1, full_waits: 1, bytes_in_flight: 16 });
    }
}
