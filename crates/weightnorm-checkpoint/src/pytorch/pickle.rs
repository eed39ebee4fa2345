//! A pickle read as data: a machine with a stack, which never imports, calls or makes anything of Python.
//!
//! Opcodes of the protocols 2 to 5, as PyTorch writes them. A class or a function is a name ([`Global`]); what would be
//! the result of a call is a tensor, a dictionary or a tuple for the few names that are known, and else an opaque value,
//! of which nothing is read. Memory is bounded: what opcodes push is counted.
use std::collections::HashMap;

use super::global;
use super::value::{Global, Name, Object, Span, Storage, Tensor, Value, Values};

/// The longest pickle that is read: 200,000 tensors.
pub const MAX_PICKLE: u64 = 64 << 20;
/// Values that are pushed, in all.
const MAX_PUSHED: usize = 1 << 23;
/// Of which objects.
const MAX_OBJECTS: usize = 1 << 21;

/// Reads a pickle, and returns what stands on the stack at its end.
pub fn read(bytes: Vec<u8>) -> Result<(Values, Value), String> {
    let (values, roots, _) = read_several(bytes, 1)?;
    Ok((values, roots[0]))
}

/// Reads so many pickles that follow each other, and returns where the last of them ends.
pub fn read_several(bytes: Vec<u8>, count: usize) -> Result<(Values, Vec<Value>, u64), String> {
    let values = Values { bytes, objects: vec![] };
    let mut machine = Machine { values, at: 0, stack: vec![], marks: vec![], memo: HashMap::new(), pushed: 0 };
    let mut roots = vec![];
    for _ in 0..count {
        let root = machine.run().map_err(|what| format!("its pickle is damaged: byte {}: {what}", machine.at))?;
        roots.push(root);
        (machine.stack, machine.marks, machine.memo) = Default::default();
    }
    machine.values.bytes.truncate(machine.at);
    machine.values.bytes.shrink_to_fit();
    Ok((machine.values, roots, machine.at as u64))
}

struct Machine {
    values: Values,
    at: usize,
    stack: Vec<Value>,
    /// Lengths of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    pushed: usize,
}

impl Machine {
    fn run(&mut self) -> Result<Value, String> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                0x80 => match self.byte()? {
                    0..=5 => {}
                    other => return Err(format!("protocol {other}, where 5 is the last that is known")),
                },
                // The length of what follows, which says nothing new.
                0x95 => drop(self.take(8)?),
                b'(' => {
                    self.count(1)?;
                    self.marks.push(self.stack.len());
                }
                b'0' => drop(self.pop()?),
                b'1' => drop(self.until_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.push(top)?;
                }
                b'N' => self.push(Value::Plain)?,
                truth @ (0x88 | 0x89) => self.push(Value::Bool(truth == 0x88))?,
                b'J' => {
                    let number = self.number(4)? as u32;
                    self.push(Value::Int((number as i32).into()))?;
                }
                b'K' => self.integer(1)?,
                b'M' => self.integer(2)?,
                0x8a => self.long(1)?,
                0x8b => self.long(4)?,
                b'G' => self.plain(8)?,
                b'U' => self.text(1)?,
                b'T' => self.text(4)?,
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b'C' => self.bytes(1)?,
                b'B' => self.bytes(4)?,
                0x8e | 0x96 => self.bytes(8)?,
                b']' => self.object(Object::List(vec![]))?,
                b')' => self.object(Object::Tuple(vec![]))?,
                b'}' => self.object(Object::Dict(vec![]))?,
                0x8f => self.object(Object::Opaque(None))?,
                b't' => {
                    let elements = self.until_mark()?;
                    self.object(Object::Tuple(elements))?;
                }
                b'l' => {
                    let elements = self.until_mark()?;
                    self.object(Object::List(elements))?;
                }
                count @ 0x85..=0x87 => {
                    let from =
                        self.stack.len().checked_sub(usize::from(count - 0x84)).filter(|&from| from >= self.floor());
                    let elements = self.stack.split_off(from.ok_or_else(empty)?);
                    self.object(Object::Tuple(elements))?;
                }
                b'd' => {
                    let entries = pairs(self.until_mark()?)?;
                    self.object(Object::Dict(entries))?;
                }
                b'a' => {
                    let element = self.pop()?;
                    self.append(vec![element])?;
                }
                b'e' | 0x90 => {
                    let elements = self.until_mark()?;
                    self.append(elements)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(vec![(key, value)])?;
                }
                b'u' => {
                    let entries = pairs(self.until_mark()?)?;
                    self.insert(entries)?;
                }
                0x91 => {
                    self.until_mark()?;
                    self.object(Object::Opaque(None))?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => match (self.pop()?, self.pop()?) {
                    (Value::Text(name), Value::Text(module)) => self.global(module, name)?,
                    _ => return Err("a class or function whose name is no text".to_owned()),
                },
                b'R' | 0x81 => {
                    let (arguments, callee) = (self.pop()?, self.pop()?);
                    self.call(callee, arguments)?;
                }
                0x92 => {
                    let (_, arguments, callee) = (self.pop()?, self.pop()?, self.pop()?);
                    self.call(callee, arguments)?;
                }
                b'o' => {
                    let elements = self.until_mark()?;
                    let name = elements.first().and_then(|&class| self.name_of(class));
                    self.object(Object::Opaque(name))?;
                }
                // The state of an object: of a dictionary or a tensor nothing but attributes.
                b'b' => {
                    self.pop()?;
                    self.top()?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.object(storage)?;
                }
                b'h' => self.get(1)?,
                b'j' => self.get(4)?,
                b'q' => {
                    let number = self.number(1)? as u32;
                    self.put(number)?;
                }
                b'r' => {
                    let number = self.number(4)? as u32;
                    self.put(number)?;
                }
                0x94 => self.put(self.memo.len() as u32)?,
                other => return Err(format!("opcode {other:#04x}, which PyTorch does not write")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<Span, String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.values.bytes.len());
        let end = end.ok_or_else(|| "it is cut off".to_owned())?;
        let span = Span { begin: self.at as u32, end: end as u32 };
        self.at = end;
        Ok(span)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.number(1)? as u8)
    }

    /// Of up to 8 bytes, little-endian.
    fn number(&mut self, count: usize) -> Result<u64, String> {
        let span = self.take(count)?;
        Ok(self.values.text(span).iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// A length of so many bytes, and as many bytes.
    fn counted(&mut self, count: usize) -> Result<Span, String> {
        let length = self.number(count)?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// Up to the end of the line.
    fn line(&mut self) -> Result<Span, String> {
        let length = self.values.bytes[self.at..].iter().position(|&byte| byte == b'\n');
        let span = self.take(length.ok_or_else(|| "it is cut off".to_owned())?)?;
        self.take(1)?;
        Ok(span)
    }

    fn count(&mut self, more: usize) -> Result<(), String> {
        self.pushed += more;
        if self.pushed > MAX_PUSHED {
            return Err(format!("more than {MAX_PUSHED} values"));
        }
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        self.count(1)?;
        self.stack.push(value);
        Ok(())
    }

    fn object(&mut self, object: Object) -> Result<(), String> {
        if self.values.objects.len() == MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} objects"));
        }
        self.values.objects.push(object);
        self.push(Value::Object(self.values.objects.len() as u32 - 1))
    }

    fn integer(&mut self, count: usize) -> Result<(), String> {
        let number = self.number(count)?;
        self.push(Value::Int(number as i64))
    }

    fn long(&mut self, count: usize) -> Result<(), String> {
        let span = self.counted(count)?;
        let bytes = self.values.text(span);
        let value = match bytes.last() {
            None => Value::Int(0),
            Some(last) if bytes.len() <= 8 => {
                let sign = if last >> 7 == 1 { -1 } else { 0 };
                Value::Int(bytes.iter().rev().fold(sign, |number, &byte| number << 8 | i64::from(byte)))
            }
            Some(_) => Value::Plain,
        };
        self.push(value)
    }

    fn plain(&mut self, count: usize) -> Result<(), String> {
        self.take(count)?;
        self.push(Value::Plain)
    }

    fn text(&mut self, count: usize) -> Result<(), String> {
        let span = self.counted(count)?;
        self.push(Value::Text(span))
    }

    fn bytes(&mut self, count: usize) -> Result<(), String> {
        self.counted(count)?;
        self.push(Value::Plain)
    }

    /// Below it lies what belongs to a mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value, String> {
        self.stack[self.floor()..].last().copied().ok_or_else(empty)
    }

    fn pop(&mut self) -> Result<Value, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn until_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or_else(|| "no mark is there".to_owned())?;
        Ok(self.stack.split_off(mark))
    }

    fn get(&mut self, count: usize) -> Result<(), String> {
        let number = self.number(count)? as u32;
        let value = *self.memo.get(&number).ok_or_else(|| format!("value {number} is asked for, and not there"))?;
        self.push(value)
    }

    fn put(&mut self, number: u32) -> Result<(), String> {
        let top = self.top()?;
        self.count(1)?;
        self.memo.insert(number, top);
        Ok(())
    }

    /// The object below what was popped.
    fn target(&mut self) -> Result<&mut Object, String> {
        match self.top()? {
            Value::Object(number) => Ok(&mut self.values.objects[number as usize]),
            _ => Err("something is put into a value that holds nothing".to_owned()),
        }
    }

    fn append(&mut self, elements: Vec<Value>) -> Result<(), String> {
        match self.target()? {
            Object::List(list) => list.extend(elements),
            Object::Opaque(_) => {}
            _ => return Err("an element is put into what is no list".to_owned()),
        }
        Ok(())
    }

    fn insert(&mut self, entries: Vec<(Value, Value)>) -> Result<(), String> {
        match self.target()? {
            Object::Dict(dict) => dict.extend(entries),
            Object::Opaque(_) => {}
            _ => return Err("an entry is put into what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn global(&mut self, module: Span, name: Span) -> Result<(), String> {
        let known = global::known(&self.values, module, name);
        self.object(Object::Global(known))
    }

    fn name_of(&self, class: Value) -> Option<Name> {
        match self.values.global(class) {
            Some(Global::Other(name)) => Some(name),
            _ => None,
        }
    }

    /// What a call would give, by the name of what is called.
    fn call(&mut self, callee: Value, arguments: Value) -> Result<(), String> {
        let mut callee = self.values.global(callee);
        let mut arguments = self.values.elements(arguments).unwrap_or_default();
        if let (Some(Global::RebuildFromType), [function, _, inner, ..]) = (callee, arguments) {
            callee = self.values.global(*function);
            arguments = self.values.elements(*inner).unwrap_or_default();
        }
        let tensor = || "a tensor is not made of what it should be".to_owned();
        let view = |arguments: &[Value], element| {
            let [storage, Value::Int(offset), shape, strides, ..] = *arguments else { return Err(tensor()) };
            let Some(&Object::Storage(storage)) = self.values.object(storage) else { return Err(tensor()) };
            Ok(Object::Tensor(Tensor { storage, element, offset, shape, strides }))
        };
        let object = match (callee, arguments) {
            (Some(Global::RebuildTensor), arguments) => view(arguments, None)?,
            (Some(Global::RebuildTensorV3), arguments) => match arguments.get(6).and_then(|&t| self.values.global(t)) {
                Some(Global::DType(element)) => view(arguments, Some(element))?,
                Some(Global::Other(Name { name, .. })) => Object::Unread(name),
                _ => return Err(tensor()),
            },
            // The same tensor.
            (Some(Global::RebuildParameter), &[data, ..]) => return self.push(data),
            (Some(Global::RebuildOther(name)), _) => Object::Unread(name),
            (Some(Global::Size), &[shape, ..]) => return self.push(shape),
            (Some(Global::Dict), arguments) => {
                // Pairs, as Python 2 wrote them; or the function that a defaultdict calls.
                let pairs = arguments.first().and_then(|&list| self.values.elements(list)).unwrap_or_default();
                let pair = |&pair: &Value| match self.values.elements(pair) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                };
                let pairs: Vec<_> = pairs.iter().filter_map(pair).collect();
                // Nothing else bounds how often a list is taken.
                self.count(pairs.len())?;
                Object::Dict(pairs)
            }
            (Some(Global::Other(name)), _) => Object::Opaque(Some(name)),
            _ => Object::Opaque(None),
        };
        self.object(object)
    }

    /// `("storage", torch.FloatStorage, KEY, DEVICE, COUNT)`, and in the old form none.
    fn storage(&self, id: Value) -> Result<Object, String> {
        let odd = || "a reference to something outside that is no storage".to_owned();
        let Some([kind, class, Value::Text(key), _, Value::Int(count), rest @ ..]) = self.values.elements(id) else {
            return Err(odd());
        };
        // Of files before PyTorch 1.6: a part of another storage, as PyTorch 0.3 had them.
        if let [view, ..] = rest
            && *view != Value::Plain
        {
            return Err("a storage is a part of another one".to_owned());
        }
        match (kind, self.values.global(*class)) {
            (Value::Text(kind), Some(Global::StorageOf(element))) if self.values.text(*kind) == b"storage" => {
                Ok(Object::Storage(Storage { element, key: *key, count: *count }))
            }
            _ => Err(odd()),
        }
    }
}

fn empty() -> String {
    "a value is taken where none is".to_owned()
}

fn pairs(elements: Vec<Value>) -> Result<Vec<(Value, Value)>, String> {
    match elements.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a key without a value".to_owned()),
    }
}
