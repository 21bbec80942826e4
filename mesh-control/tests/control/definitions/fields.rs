//! Which fields a type reads, asked of its `Deserialize` itself: a deserializer that says yes to everything and writes
//! down what it was asked for.

use std::cell::RefCell;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

/// The step into a sequence.
pub(super) const ITEM: &str = "[]";
/// The step into a mapping of any keys.
pub(super) const ENTRY: &str = "{}";

/// The paths of all fields of `T`.
pub(super) fn of<T: DeserializeOwned>() -> Vec<Vec<String>> {
    let asked = RefCell::default();
    T::deserialize(Asked { path: Vec::new(), asked: &asked }).unwrap_or_else(|error| panic!("{error}"));
    asked.into_inner()
}

#[derive(Clone)]
struct Asked<'a> {
    path: Vec<String>,
    asked: &'a RefCell<Vec<Vec<String>>>,
}

impl Asked<'_> {
    fn then(&self, step: &str) -> Self {
        let mut path = self.path.clone();
        path.push(step.to_owned());
        Self { path, asked: self.asked }
    }
}

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        // Metadata is the API server's, and has times in it that no text of ours is one of.
        let fields = fields.iter().copied().filter(|field| *field != "metadata").collect();
        visitor.visit_map(Fields { of: self, fields, next: 0 })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Entry { of: self, given: false })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items { of: self, given: false })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(First(variants[0]))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("")
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("")
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(0)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u32(0)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i128 u8 u16 u64 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct tuple
        tuple_struct identifier ignored_any
    }
}

struct Fields<'a> {
    of: Asked<'a>,
    fields: Vec<&'static str>,
    next: usize,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let field: Option<&&str> = self.fields.get(self.next);
        field.map(|field| seed.deserialize((*field).into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let field = self.of.then(self.fields[self.next]);
        self.next += 1;
        field.asked.borrow_mut().push(field.path.clone());
        seed.deserialize(field)
    }
}

struct Entry<'a> {
    of: Asked<'a>,
    given: bool,
}

impl<'de> MapAccess<'de> for Entry<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let first = !std::mem::replace(&mut self.given, true);
        let key: StrDeserializer<'_, Error> = "key".into_deserializer();
        first.then(|| seed.deserialize(key)).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let entry = self.of.then(ENTRY);
        entry.asked.borrow_mut().push(entry.path.clone());
        seed.deserialize(entry)
    }
}

struct Items<'a> {
    of: Asked<'a>,
    given: bool,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let first = !std::mem::replace(&mut self.given, true);
        let item = self.of.then(ITEM);
        item.asked.borrow_mut().push(item.path.clone());
        first.then(|| seed.deserialize(item)).transpose()
    }
}

struct First(&'static str);

impl<'de> EnumAccess<'de> for First {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for First {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        unimplemented_variant()
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        unimplemented_variant()
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        unimplemented_variant()
    }
}

fn unimplemented_variant<T>() -> Result<T, Error> {
    Err(serde::de::Error::custom("an enum with more than names is not walked through"))
}
