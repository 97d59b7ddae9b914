//! Mostly one of something, sometimes more: then a vector.

use std::cmp::Ordering;
use std::mem;

/// A list of which one element costs no allocation.
///
/// Invariant: `Many` has been two or more.
#[derive(Clone, Debug)]
pub(crate) enum Few<T> {
    None,
    One([T; 1]),
    Many(Vec<T>),
}

impl<T> Few<T> {
    pub(crate) const fn new() -> Self {
        Few::None
    }

    #[inline]
    pub(crate) fn push(&mut self, value: T) {
        match self {
            Few::None => *self = Few::One([value]),
            Few::Many(many) => many.push(value),
            Few::One(_) => self.push_second(value),
        }
    }

    fn push_second(&mut self, value: T) {
        if let Few::One([first]) = self.take() {
            let mut many = Vec::with_capacity(4);
            many.push(first);
            many.push(value);
            *self = Few::Many(many);
        }
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Few::None => &[],
            Few::One(one) => one,
            Few::Many(many) => many,
        }
    }

    #[inline]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Few::None => &mut [],
            Few::One(one) => one,
            Few::Many(many) => many,
        }
    }

    /// The element that is equal by this order, in which the list is; made and put in if there is none.
    #[inline]
    pub(crate) fn place_for(&mut self, order: impl Fn(&T) -> Ordering, make: impl FnOnce() -> T) -> &mut T {
        let at = match self {
            Few::None => {
                self.push(make());
                0
            }
            _ => self.as_slice().binary_search_by(order).unwrap_or_else(|at| {
                self.push(make());
                self.as_mut_slice()[at..].rotate_right(1);
                at
            }),
        };
        &mut self.as_mut_slice()[at]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.as_mut_slice().last_mut()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.as_slice().iter()
    }

    pub(crate) fn take(&mut self) -> Self {
        mem::replace(self, Few::None)
    }

    pub(crate) fn clear(&mut self) {
        *self = Few::None;
    }

    /// The first, and the others.
    pub(crate) fn into_parts(self) -> (Option<T>, Vec<T>) {
        match self {
            Few::None => (None, Vec::new()),
            Few::One([one]) => (Some(one), Vec::new()),
            Few::Many(mut many) => {
                let first = (!many.is_empty()).then(|| many.remove(0));
                (first, many)
            }
        }
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few::new()
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<std::option::IntoIter<T>, std::vec::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        let (one, many) = match self {
            Few::None => (None, Vec::new()),
            Few::One([one]) => (Some(one), Vec::new()),
            Few::Many(many) => (None, many),
        };
        one.into_iter().chain(many)
    }
}

impl<T> Extend<T> for Few<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        values.into_iter().for_each(|value| self.push(value));
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut few = Few::new();
        few.extend(values);
        few
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_of_any_length() {
        for len in 0..5 {
            let few: Few<u32> = (0..len).collect();
            let expected: Vec<u32> = (0..len).collect();
            assert_eq!((few.as_slice(), few.len()), (&*expected, len as usize));
            let (first, rest) = few.clone().into_parts();
            assert_eq!(first.into_iter().chain(rest).collect::<Vec<_>>(), expected);
            assert_eq!(few.into_iter().collect::<Vec<_>>(), expected);
        }
    }
}
