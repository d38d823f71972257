//! Python pickles as inert data: a reader of protocols 0 to 5 that executes nothing.
//!
//! A pickle is a program for a stack machine. [`Pickle::read`] runs it with every global a mere pair of names,
//! every call (`REDUCE`, `NEWOBJ`) a mere record of what would be called with what: [`Object::Instance`].
//! Objects lie in one list and refer to each other by number, so that shared and cyclic ones need no care.
//!
//! Promises, for any bytes: no panic, no recursion, memory in proportion to the bytes and at most
//! [`MAX_OBJECTS`] objects. Lengths are checked against the bytes that are there before anything is reserved.
//! Sets, extension codes, out-of-band buffers and the class opcodes of protocol 0 are refused by name.

use std::collections::HashMap;

use bytes::Bytes;

/// Most objects in one pickle.
pub const MAX_OBJECTS: usize = 1 << 20;
/// Longest name of a global, a key or a tensor, in bytes.
pub const MAX_NAME: usize = 1024;

/// Why a pickle could not be read. `at` is the byte of the opcode.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PickleError {
    /// The bytes end before the pickle does.
    #[error("the pickle ends too early, at byte {at}")]
    End {
        /// Where.
        at: usize,
    },
    /// No opcode, or one that this reader does not know.
    #[error("byte {at} of the pickle: opcode {opcode:#04x} is not supported")]
    Opcode {
        /// Where.
        at: usize,
        /// The opcode.
        opcode: u8,
    },
    /// An operand is missing or of another kind than the opcode takes.
    #[error("byte {at} of the pickle: opcode {opcode:#04x} lacks an operand of the right kind")]
    Operand {
        /// Where.
        at: usize,
        /// The opcode.
        opcode: u8,
    },
    /// Text that is no text, or no number.
    #[error("byte {at} of the pickle: bad text or number")]
    Text {
        /// Where.
        at: usize,
    },
    /// More than [`MAX_OBJECTS`] objects.
    #[error("the pickle holds more than {MAX_OBJECTS} objects")]
    TooManyObjects,
    /// A file that is no pickle at all.
    #[error("not a file of weights: {0}")]
    NotThis(&'static str),
    /// Something that is neither a tensor nor a container of tensors.
    #[error("'{name}' of the pickle is {what}, no tensor")]
    NotATensor {
        /// Where it lies in the containers.
        name: String,
        /// What it is.
        what: String,
    },
    /// A tensor that contradicts itself.
    #[error("tensor '{name}' of the pickle: {why}")]
    BadTensor {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A torch file that contradicts itself.
    #[error("not a valid torch file: {0}")]
    BadTorch(&'static str),
    /// Containers nested too deep, too many of them, or names too long.
    #[error("the containers of the pickle are nested too deep, too many, or named at too great a length")]
    TooLarge,
}

/// Number of an object in its [`Pickle`].
pub type Id = u32;

/// One object. Containers and calls refer to others by [`Id`].
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// None.
    None,
    /// True or False.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A longer integer: two's complement, little-endian.
    Long(Bytes),
    /// A float.
    Float(f64),
    /// Unicode text.
    Text(String),
    /// Bytes; also what Python 2 calls a string.
    Bytes(Bytes),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A dictionary, in the order of the file.
    Dict(Vec<(Id, Id)>),
    /// A name in a module.
    Global(Box<(String, String)>),
    /// What calling `callable` would give; nothing is called.
    Instance {
        /// What would be called, a [`Object::Global`] as a rule.
        callable: Id,
        /// A tuple, as a rule.
        arguments: Id,
        /// What `BUILD` would hand to it.
        state: Option<Id>,
        /// What `SETITEM` would put into it.
        items: Vec<(Id, Id)>,
    },
    /// A reference to something outside the pickle.
    Persistent(Id),
}

/// A pickle that was read.
#[derive(Clone, Debug)]
pub struct Pickle {
    objects: Vec<Object>,
    root: Id,
    end: usize,
}

impl Pickle {
    /// Reads the pickle that starts at byte `start` of `file`. Byte strings are slices of `file`.
    ///
    /// # Errors
    /// [`PickleError::End`], `Opcode`, `Operand`, `Text`, `TooManyObjects`.
    pub fn read(file: &Bytes, start: usize) -> Result<Self, PickleError> {
        let mut machine = Machine {
            file,
            next: start,
            at: start,
            opcode: 0,
            objects: vec![Object::None, Object::Bool(false), Object::Bool(true), Object::Tuple(Vec::new())],
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        while !machine.step()? {}
        let root = machine.pop()?;
        Ok(Self { objects: machine.objects, root, end: machine.next })
    }

    /// The object that the pickle is.
    pub fn root(&self) -> Id {
        self.root
    }

    /// The byte after the pickle.
    pub fn end(&self) -> usize {
        self.end
    }

    /// An object by number; `None` for a number that is not of this pickle.
    pub fn get(&self, id: Id) -> Option<&Object> {
        self.objects.get(usize::try_from(id).ok()?)
    }

    /// All objects, shared ones once, in the order they were made.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// A short text, or Python 2's string, which is taken as Latin-1; `None` over [`MAX_NAME`] bytes, since
    /// every caller gets a copy and a hostile file may refer to one text a million times.
    pub fn text(&self, id: Id) -> Option<String> {
        match self.get(id)? {
            Object::Text(text) if text.len() <= MAX_NAME => Some(text.clone()),
            Object::Bytes(bytes) if bytes.len() <= MAX_NAME => Some(bytes.iter().map(|&b| char::from(b)).collect()),
            _ => None,
        }
    }

    /// An integer of at most 64 bits.
    pub fn int(&self, id: Id) -> Option<i64> {
        match self.get(id)? {
            Object::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The entries of a tuple or list.
    pub fn entries(&self, id: Id) -> Option<&[Id]> {
        match self.get(id)? {
            Object::Tuple(entries) | Object::List(entries) => Some(entries),
            _ => None,
        }
    }

    /// The module and name of a global.
    pub fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.get(id)? {
            Object::Global(names) => Some((&names.0, &names.1)),
            _ => None,
        }
    }
}

const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;
const EMPTY_TUPLE: Id = 3;

struct Machine<'f> {
    file: &'f Bytes,
    next: usize,
    /// The opcode being carried out and its place, for messages.
    at: usize,
    opcode: u8,
    objects: Vec<Object>,
    stack: Vec<Id>,
    /// Heights of the stack at which the open marks were set.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl Machine<'_> {
    fn end(&self) -> PickleError {
        PickleError::End { at: self.at }
    }
    fn operand(&self) -> PickleError {
        PickleError::Operand { at: self.at, opcode: self.opcode }
    }
    fn text_error(&self) -> PickleError {
        PickleError::Text { at: self.at }
    }

    /// The next `count` bytes, as a slice of the file.
    fn take(&mut self, count: u64) -> Result<Bytes, PickleError> {
        let count = usize::try_from(count).map_err(|_| self.end())?;
        let end = self.next.checked_add(count).filter(|&e| e <= self.file.len()).ok_or_else(|| self.end())?;
        let bytes = self.file.slice(self.next..end);
        self.next = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let bytes = self.file.get(self.next..).and_then(|rest| rest.first_chunk::<N>()).copied();
        let bytes = bytes.ok_or_else(|| self.end())?;
        self.next += N;
        Ok(bytes)
    }
    fn u8(&mut self) -> Result<u64, PickleError> {
        self.array::<1>().map(|[b]| u64::from(b))
    }
    fn u32(&mut self) -> Result<u64, PickleError> {
        self.array().map(|b| u64::from(u32::from_le_bytes(b)))
    }
    fn u64(&mut self) -> Result<u64, PickleError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The bytes up to the end of the line, which is consumed.
    fn line(&mut self) -> Result<Bytes, PickleError> {
        let rest = self.file.get(self.next..).unwrap_or_default();
        let length = rest.iter().position(|&b| b == b'\n').ok_or_else(|| self.end())?;
        let line = self.file.slice(self.next..self.next + length);
        self.next += length + 1;
        Ok(line)
    }
    fn line_text(&mut self) -> Result<String, PickleError> {
        let line = self.line()?;
        self.utf8(&line)
    }
    fn utf8(&self, bytes: &[u8]) -> Result<String, PickleError> {
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| self.text_error())
    }

    fn new_object(&mut self, object: Object) -> Result<Id, PickleError> {
        if self.objects.len() >= MAX_OBJECTS {
            return Err(PickleError::TooManyObjects);
        }
        let id = Id::try_from(self.objects.len()).map_err(|_| PickleError::TooManyObjects)?;
        self.objects.push(object);
        Ok(id)
    }
    fn push(&mut self, object: Object) -> Result<(), PickleError> {
        let id = self.new_object(object)?;
        self.stack.push(id);
        Ok(())
    }

    /// The topmost object above the innermost mark.
    fn top(&self) -> Result<Id, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.last().copied().filter(|_| self.stack.len() > floor).ok_or_else(|| self.operand())
    }
    fn pop(&mut self) -> Result<Id, PickleError> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }
    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, PickleError> {
        let mut ids = Vec::with_capacity(count.min(3));
        for _ in 0..count {
            ids.push(self.pop()?);
        }
        ids.reverse();
        Ok(ids)
    }
    /// Everything above the innermost mark, which goes too.
    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let floor = self.marks.pop().filter(|&f| f <= self.stack.len()).ok_or_else(|| self.operand())?;
        Ok(self.stack.split_off(floor))
    }
    fn pairs(&self, ids: &[Id]) -> Result<Vec<(Id, Id)>, PickleError> {
        let (pairs, rest) = ids.as_chunks::<2>();
        if rest.is_empty() { Ok(pairs.iter().map(|&[k, v]| (k, v)).collect()) } else { Err(self.operand()) }
    }
    fn object_mut(&mut self, id: Id) -> Option<&mut Object> {
        self.objects.get_mut(usize::try_from(id).ok()?)
    }

    fn append(&mut self, entries: &[Id]) -> Result<(), PickleError> {
        let (error, list) = (self.operand(), self.top()?);
        match self.object_mut(list) {
            Some(Object::List(list)) => list.extend_from_slice(entries),
            _ => return Err(error),
        }
        Ok(())
    }
    fn set_items(&mut self, new: &[(Id, Id)]) -> Result<(), PickleError> {
        let (error, dict) = (self.operand(), self.top()?);
        match self.object_mut(dict) {
            Some(Object::Dict(items) | Object::Instance { items, .. }) => items.extend_from_slice(new),
            _ => return Err(error),
        }
        Ok(())
    }
    fn call(&mut self) -> Result<(), PickleError> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        self.push(Object::Instance { callable, arguments, state: None, items: Vec::new() })
    }
    fn build(&mut self) -> Result<(), PickleError> {
        let (new, error) = (self.pop()?, self.operand());
        let instance = self.top()?;
        match self.object_mut(instance) {
            Some(Object::Instance { state, .. }) => *state = Some(new),
            _ => return Err(error),
        }
        Ok(())
    }
    fn global(&mut self, module: String, name: String) -> Result<(), PickleError> {
        self.push(Object::Global(Box::new((module, name))))
    }
    fn put(&mut self, key: u64) -> Result<(), PickleError> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }
    fn get(&mut self, key: u64) -> Result<(), PickleError> {
        let id = self.memo.get(&key).copied().ok_or_else(|| self.operand())?;
        self.stack.push(id);
        Ok(())
    }
    fn number<T: std::str::FromStr>(&self, text: &str) -> Result<T, PickleError> {
        text.trim().parse().map_err(|_| self.text_error())
    }

    fn push_text(&mut self, length: u64) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        let text = self.utf8(&bytes)?;
        self.push(Object::Text(text))
    }
    fn push_bytes(&mut self, length: u64) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        self.push(Object::Bytes(bytes))
    }
    fn push_long(&mut self, length: u64) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xFF } else { 0 }; 8];
        match wide.get_mut(..bytes.len()) {
            Some(low) => low.copy_from_slice(&bytes),
            None => return self.push(Object::Long(bytes)),
        }
        self.push(Object::Int(i64::from_le_bytes(wide)))
    }

    /// Carries out one opcode; true at the end of the pickle.
    fn step(&mut self) -> Result<bool, PickleError> {
        self.at = self.next;
        [self.opcode] = self.array()?;
        match self.opcode {
            b'.' => return Ok(true),
            0x80 => {
                let version = self.u8()?;
                if version > 5 {
                    return Err(self.operand());
                }
            }
            0x95 => drop(self.u64()?), // A frame's length: a hint for readers of streams.
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // Pops a mark where one is on top.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let id = self.top()?;
                self.stack.push(id);
            }
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
            b')' => self.stack.push(EMPTY_TUPLE),
            b'I' => {
                let text = self.line_text()?;
                match text.as_str() {
                    "00" => self.stack.push(FALSE),
                    "01" => self.stack.push(TRUE),
                    number => {
                        let value = self.number(number)?;
                        self.push(Object::Int(value))?;
                    }
                }
            }
            b'L' => {
                let text = self.line_text()?;
                let value: i128 = self.number(text.trim_end_matches('L'))?;
                self.push(match i64::try_from(value) {
                    Ok(value) => Object::Int(value),
                    Err(_) => Object::Long(value.to_le_bytes().to_vec().into()),
                })?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Object::Int(value.into()))?;
            }
            b'K' => {
                let [value] = self.array()?;
                self.push(Object::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Object::Int(value.into()))?;
            }
            0x8a => {
                let length = self.u8()?;
                self.push_long(length)?;
            }
            0x8b => {
                let length = self.u32()?;
                self.push_long(length)?;
            }
            b'F' => {
                let text = self.line_text()?;
                let value = self.number(&text)?;
                self.push(Object::Float(value))?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Object::Float(value))?;
            }
            b'S' => {
                let line = self.line()?;
                let bytes = unquoted(&line).ok_or_else(|| self.text_error())?;
                self.push(Object::Bytes(bytes.into()))?;
            }
            b'V' => {
                let line = self.line()?;
                let text = raw_unicode(&line).ok_or_else(|| self.text_error())?;
                self.push(Object::Text(text))?;
            }
            b'U' | b'C' => {
                let length = self.u8()?;
                self.push_bytes(length)?;
            }
            b'T' | b'B' => {
                let length = self.u32()?;
                self.push_bytes(length)?;
            }
            0x8e | 0x96 => {
                let length = self.u64()?;
                self.push_bytes(length)?;
            }
            0x8c => {
                let length = self.u8()?;
                self.push_text(length)?;
            }
            b'X' => {
                let length = self.u32()?;
                self.push_text(length)?;
            }
            0x8d => {
                let length = self.u64()?;
                self.push_text(length)?;
            }
            b']' => self.push(Object::List(Vec::new()))?,
            b'}' => self.push(Object::Dict(Vec::new()))?,
            b't' => {
                let entries = self.pop_mark()?;
                self.push(Object::Tuple(entries))?;
            }
            b'l' => {
                let entries = self.pop_mark()?;
                self.push(Object::List(entries))?;
            }
            b'd' => {
                let entries = self.pop_mark()?;
                let items = self.pairs(&entries)?;
                self.push(Object::Dict(items))?;
            }
            0x85..=0x87 => {
                let entries = self.pop_many(usize::from(self.opcode - 0x84))?;
                self.push(Object::Tuple(entries))?;
            }
            b'a' => {
                let entry = self.pop()?;
                self.append(&[entry])?;
            }
            b'e' => {
                let entries = self.pop_mark()?;
                self.append(&entries)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[(key, value)])?;
            }
            b'u' => {
                let entries = self.pop_mark()?;
                let items = self.pairs(&entries)?;
                self.set_items(&items)?;
            }
            b'c' => {
                let (module, name) = (self.line_text()?, self.line_text()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: Id| match usize::try_from(id).ok().and_then(|i| self.objects.get(i)) {
                    Some(Object::Text(text)) if text.len() <= MAX_NAME => Ok(text.clone()),
                    _ => Err(self.operand()),
                };
                let (module, name) = (text(module)?, text(name)?);
                self.global(module, name)?;
            }
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'P' => {
                let name = self.line_text()?;
                let id = self.new_object(Object::Text(name))?;
                self.push(Object::Persistent(id))?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Object::Persistent(id))?;
            }
            b'p' | b'g' => {
                let text = self.line_text()?;
                let key = self.number(&text)?;
                if self.opcode == b'p' { self.put(key)? } else { self.get(key)? }
            }
            b'q' => {
                let key = self.u8()?;
                self.put(key)?;
            }
            b'r' => {
                let key = self.u32()?;
                self.put(key)?;
            }
            0x94 => self.put(self.memo.len() as u64)?,
            b'h' => {
                let key = self.u8()?;
                self.get(key)?;
            }
            b'j' => {
                let key = self.u32()?;
                self.get(key)?;
            }
            opcode => return Err(PickleError::Opcode { at: self.at, opcode }),
        }
        Ok(false)
    }
}

/// The bytes that Python 2's `repr` of a string stands for.
fn unquoted(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.trim_ascii_end();
    let (&quote, rest) = line.split_first()?;
    let (&last, inner) = rest.split_last()?;
    if quote != last || !matches!(quote, b'\'' | b'"') {
        return None;
    }
    let mut result = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter().copied();
    while let Some(byte) = bytes.next() {
        result.push(if byte != b'\\' {
            byte
        } else {
            match bytes.next()? {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'x' => {
                    let mut digit = || char::from(bytes.next()?).to_digit(16);
                    u8::try_from(digit()? * 16 + digit()?).ok()?
                }
                other @ (b'\\' | b'\'' | b'"') => other,
                _ => return None,
            }
        });
    }
    Some(result)
}

/// Python's raw-unicode-escape: Latin-1 with `\uXXXX` and `\UXXXXXXXX`.
fn raw_unicode(line: &[u8]) -> Option<String> {
    let mut result = String::with_capacity(line.len());
    let mut bytes = line.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let digits = match (byte, bytes.peek()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                result.push(char::from(byte));
                continue;
            }
        };
        bytes.next();
        let mut code = 0u32;
        for _ in 0..digits {
            code = code.checked_mul(16)?.checked_add(char::from(bytes.next()?).to_digit(16)?)?;
        }
        result.push(char::from_u32(code)?);
    }
    Some(result)
}
