//! Which classes and functions of a pickle are known, by their names. None of them is ever called.
use super::value::{Element, Global, Name, Span, Values};
use crate::FileDType;

pub fn known(values: &Values, module: Span, name: Span) -> Global {
    let other = Global::Other(Name { module, name });
    match (values.text(module), values.text(name)) {
        (b"torch._utils", b"_rebuild_tensor_v2" | b"_rebuild_tensor") => Global::RebuildTensor,
        (b"torch._utils", b"_rebuild_tensor_v3") => Global::RebuildTensorV3,
        (b"torch._utils", b"_rebuild_parameter" | b"_rebuild_parameter_with_state") => Global::RebuildParameter,
        (b"torch._tensor", b"_rebuild_from_type_v2") => Global::RebuildFromType,
        (b"torch._utils" | b"torch._tensor", text) if text.starts_with(b"_rebuild_") => Global::RebuildOther(name),
        (b"collections", b"OrderedDict" | b"defaultdict") | (b"builtins" | b"__builtin__", b"dict") => Global::Dict,
        (b"torch", b"Size") => Global::Size,
        (b"torch" | b"torch.cuda" | b"torch.storage", text) => {
            if let Some(element) = text.strip_suffix(b"Storage") {
                Global::StorageOf(storage(element).unwrap_or(Element::Other(name)))
            } else if let Some(dtype) = dtype(text) {
                Global::DType(Element::Of(dtype))
            } else {
                other
            }
        }
        _ => other,
    }
}

fn storage(name: &[u8]) -> Option<Element> {
    use FileDType::{Bf16, Bool, C64, F16, F32, F64, I8, I16, I32, I64, U8};
    let dtype = match name {
        b"Float" => F32,
        b"Double" => F64,
        b"Half" => F16,
        b"BFloat16" => Bf16,
        b"Long" => I64,
        b"Int" => I32,
        b"Short" => I16,
        b"Char" => I8,
        b"Byte" => U8,
        b"Bool" => Bool,
        b"ComplexFloat" => C64,
        b"Untyped" | b"_Untyped" => return Some(Element::Untyped),
        _ => return None,
    };
    Some(Element::Of(dtype))
}

fn dtype(name: &[u8]) -> Option<FileDType> {
    use FileDType::{Bf16, Bool, C64, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, F16, F32, F64};
    use FileDType::{I8, I16, I32, I64, U8, U16, U32, U64};
    Some(match name {
        b"float32" => F32,
        b"float64" => F64,
        b"float16" => F16,
        b"bfloat16" => Bf16,
        b"float8_e4m3fn" => F8E4M3,
        b"float8_e5m2" => F8E5M2,
        b"float8_e4m3fnuz" => F8E4M3Fnuz,
        b"float8_e5m2fnuz" => F8E5M2Fnuz,
        b"float8_e8m0fnu" => F8E8M0,
        b"int8" => I8,
        b"int16" => I16,
        b"int32" => I32,
        b"int64" => I64,
        b"uint8" => U8,
        b"uint16" => U16,
        b"uint32" => U32,
        b"uint64" => U64,
        b"bool" => Bool,
        b"complex64" => C64,
        _ => return None,
    })
}
