//! What a pickle makes: values in one list, which refer to each other by numbers.
//!
//! So a value may hold itself, and be held by any number of others; nothing is copied and nothing recurses.
use crate::FileDType;

/// The longest text that is a key of a dictionary.
pub const MAX_KEY: usize = 1 << 14;

/// A value. What is larger stands in [`Values`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// Anything that says nothing about tensors: none, floating-point numbers, bytes, large integers.
    Plain,
    Bool(bool),
    Int(i64),
    Text(Span),
    /// An object, by its number.
    Object(u32),
}

/// A part of the pickle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    pub begin: u32,
    pub end: u32,
}

#[derive(Debug, Clone)]
pub enum Object {
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// A class or a function, by its module and name. It is never called.
    Global(Global),
    Storage(Storage),
    Tensor(Tensor),
    /// A tensor that is not read here, by the function of PyTorch that makes it or by its type.
    Unread(Span),
    /// Made by a class or function that is not known here, by its name where there is one.
    Opaque(Option<Name>),
}

/// What is known by its name. All else is a name alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Global {
    /// `torch._utils._rebuild_tensor_v2`, `_rebuild_tensor`.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`, where the type stands beside the storage.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter`, with state or without.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: a function and its arguments.
    RebuildFromType,
    /// Another `_rebuild_..` of PyTorch, by its name.
    RebuildOther(Span),
    /// `collections.OrderedDict`, `defaultdict`, `dict`.
    Dict,
    /// `torch.Size`.
    Size,
    /// `torch.FloatStorage` and the like.
    StorageOf(Element),
    /// `torch.float32` and the like.
    DType(Element),
    /// Anything else.
    Other(Name),
}

/// Of a class or a function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Name {
    pub module: Span,
    pub name: Span,
}

/// The type of a storage's elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Element {
    Of(FileDType),
    /// Bytes, whose type the tensor says.
    Untyped,
    /// One that no `.safetensors` file has: its name.
    Other(Span),
}

/// The bytes of one or more tensors.
#[derive(Debug, Clone, Copy)]
pub struct Storage {
    pub element: Element,
    /// The name of the entry that holds it.
    pub key: Span,
    /// Elements.
    pub count: i64,
}

/// A view of a storage.
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    pub storage: Storage,
    /// The type of its elements, where it is not the storage's.
    pub element: Option<Element>,
    /// In elements, as are the strides.
    pub offset: i64,
    /// Tuples of integers, as the rest has yet to show.
    pub shape: Value,
    pub strides: Value,
}

/// All objects of a pickle, and its bytes.
#[derive(Debug)]
pub struct Values {
    pub bytes: Vec<u8>,
    pub objects: Vec<Object>,
}

impl Values {
    pub fn object(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Object(number) => self.objects.get(number as usize),
            _ => None,
        }
    }

    pub fn text(&self, Span { begin, end }: Span) -> &[u8] {
        self.bytes.get(begin as usize..end as usize).unwrap_or_default()
    }

    /// A dictionary's entries.
    pub fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.object(value) {
            Some(Object::Dict(entries)) => Some(entries),
            _ => None,
        }
    }

    /// Elements of a tuple or a list.
    pub fn elements(&self, value: Value) -> Option<&[Value]> {
        match self.object(value) {
            Some(Object::Tuple(elements) | Object::List(elements)) => Some(elements),
            _ => None,
        }
    }

    pub fn global(&self, value: Value) -> Option<Global> {
        match self.object(value) {
            Some(&Object::Global(global)) => Some(global),
            _ => None,
        }
    }

    pub fn is_too_long(&self, key: Value) -> bool {
        matches!(key, Value::Text(span) if self.text(span).len() > MAX_KEY)
    }

    /// A key as a part of a name: texts and integers are.
    pub fn key(&self, value: Value) -> Option<String> {
        match value {
            _ if self.is_too_long(value) => None,
            Value::Text(span) => Some(String::from_utf8_lossy(self.text(span)).into_owned()),
            Value::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }
}
