//! Tensors read by name, into memory or onto a GPU.

use super::at::{buffer, reserve};
use super::find::At;
use super::numbers::{read_as, read_parts, widen};
use super::{Checkpoint, Error, FileDType, TensorInfo};
use weightnorm::half::{bf16, f16};
use weightnorm::{DType, Element, Gpu, Tensor};

impl Checkpoint {
    /// The tensor of that name, whichever file it is in: its storage type and its shape. Of a tied name the tensor that
    /// it stands for.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.place_of(name).ok().map(|at| self.at(at))
    }

    /// Its bytes, as they stand in the file: elements in row-major order, little-endian.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such tensor; [`Error::Io`].
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, Error> {
        let at = self.place_of(name)?;
        let (source, info) = (&self.shards[at.0], self.at(at));
        let mut bytes = buffer(in_memory(info.bytes()), &source.path)?;
        source.read(info.begin, &mut bytes)?;
        Ok(bytes)
    }

    /// Its numbers as f64: floating-point numbers of 16, 32 and 64 bits, integers and truth values. Exact, but for
    /// integers beyond 2⁵³, which are rounded.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such tensor, or it is of another storage type; [`Error::Io`].
    pub fn read_f64(&self, name: &str) -> Result<Vec<f64>, Error> {
        self.read_numbers(name, |x| x)
    }

    /// Its numbers as f32, rounded to the nearest where f32 does not have them.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f64`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        self.read_numbers(name, |x| x as f32)
    }

    fn read_numbers<T>(&self, name: &str, convert: impl Fn(f64) -> T) -> Result<Vec<T>, Error> {
        let at = self.place_of(name)?;
        let (path, info) = (&self.shards[at.0].path, self.at(at));
        if !is_number(info.dtype) {
            return Err(self.refused(name, at, format!("its numbers are {}, which are not read here", info.dtype)));
        }
        let mut numbers = vec![];
        reserve(&mut numbers, in_memory(info.elements()), path)?;
        read_parts(self, at, 0, info.elements(), &mut |stored| {
            widen_any(info.dtype, stored, |x| numbers.push(convert(x)));
            Ok(())
        })?;
        Ok(numbers)
    }

    /// Puts it on a GPU, in its own storage type; f64 becomes f32.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such tensor, or it holds no floating-point numbers of 16, 32 or 64 bits;
    /// [`Error::Io`]; [`Error::Gpu`].
    pub fn upload(&self, gpu: &Gpu, name: &str) -> Result<Tensor, Error> {
        let at = self.place_of(name)?;
        match self.at(at).dtype.computed() {
            Some(DType::F32) => self.upload_as::<f32>(gpu, at),
            Some(DType::F16) => self.upload_as::<f16>(gpu, at),
            Some(DType::Bf16) => self.upload_as::<bf16>(gpu, at),
            None => {
                let dtype = self.at(at).dtype;
                Err(self.refused(name, at, format!("it is {dtype}: only F32, F16, BF16 and F64 go to a GPU")))
            }
        }
    }

    fn upload_as<T: Element + Default>(&self, gpu: &Gpu, at: At) -> Result<Tensor, Error> {
        let info = self.at(at);
        let mut numbers: Vec<T> = buffer(in_memory(info.elements()), &self.shards[at.0].path)?;
        read_as(self, at, 0, T::DTYPE, bytemuck::cast_slice_mut(&mut numbers), &mut |_| ())?;
        let uploaded = gpu.upload(&numbers, &info.shape);
        uploaded.map_err(|source| Error::Gpu { tensor: info.name.clone(), source })
    }

    fn place_of(&self, name: &str) -> Result<At, Error> {
        let place = self.names().find(|(_, known)| *known == name).map(|(at, _)| at);
        place.ok_or_else(|| {
            let reason = "there is no such tensor: `tensors` lists those that there are".to_owned();
            Error::Tensor { path: self.path.clone(), tensor: name.to_owned(), reason }
        })
    }

    fn refused(&self, name: &str, at: At, reason: String) -> Error {
        Error::Tensor { path: self.shards[at.0].path.clone(), tensor: name.to_owned(), reason }
    }
}

/// Too much to be had where it is more than the machine can address.
fn in_memory(count: u64) -> usize {
    count.try_into().unwrap_or(usize::MAX)
}

fn is_number(dtype: FileDType) -> bool {
    use FileDType::{Bool, I8, I16, I32, I64, U8, U16, U32, U64};
    dtype.computed().is_some() || matches!(dtype, Bool | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

/// Elements one by one, of every type that [`is_number`] names.
fn widen_any(dtype: FileDType, bytes: &[u8], mut take: impl FnMut(f64)) {
    match dtype {
        FileDType::Bool | FileDType::U8 => bytes.iter().for_each(|&x| take(x.into())),
        FileDType::I8 => bytes.iter().for_each(|&x| take((x as i8).into())),
        FileDType::U16 => bytes.as_chunks().0.iter().for_each(|&x| take(u16::from_le_bytes(x).into())),
        FileDType::I16 => bytes.as_chunks().0.iter().for_each(|&x| take(i16::from_le_bytes(x).into())),
        FileDType::U32 => bytes.as_chunks().0.iter().for_each(|&x| take(u32::from_le_bytes(x).into())),
        FileDType::I32 => bytes.as_chunks().0.iter().for_each(|&x| take(i32::from_le_bytes(x).into())),
        FileDType::U64 => bytes.as_chunks().0.iter().for_each(|&x| take(u64::from_le_bytes(x) as f64)),
        FileDType::I64 => bytes.as_chunks().0.iter().for_each(|&x| take(i64::from_le_bytes(x) as f64)),
        other => widen(other, bytes, take),
    }
}
