//! What the inbox and the outbox know of databases: which there are, and how a table's name is written in each.

/// The databases that are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
    /// MySQL and MariaDB.
    Mysql,
}

/// What PostgreSQL takes; the others take at least as much.
const TABLE_NAME_LEN_MAX: usize = 63;
/// How much of a bad name an error shows, in characters.
const NAME_SHOWN_MAX: usize = 100;

/// The name of a table is not an identifier.
///
/// It is 1 to 63 ASCII letters, digits and underscores, and does not begin with a digit. A schema of the same form may stand before it, with a dot between them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a table: 1 to {TABLE_NAME_LEN_MAX} ASCII letters, digits and underscores, no digit first; a schema may stand before it, with a dot"
)]
pub struct TableNameError {
    /// The name, shortened if it is long.
    name: String,
}

/// A table's name as it stands in a statement.
///
/// Quoted, so that words of the language (`order`) are names like others. Nothing that could end the quotes passes the check.
pub(crate) fn quoted(dialect: Dialect, name: &str) -> Result<String, TableNameError> {
    let parts: Vec<&str> = name.split('.').collect();
    if parts.len() > 2 || !parts.iter().all(|part| is_identifier(part)) {
        return Err(TableNameError { name: name.chars().take(NAME_SHOWN_MAX).collect() });
    }
    let quote = match dialect {
        Dialect::Sqlite | Dialect::Postgres => '"',
        Dialect::Mysql => '`',
    };
    Ok(parts.iter().map(|part| format!("{quote}{part}{quote}")).collect::<Vec<_>>().join("."))
}

fn is_identifier(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=TABLE_NAME_LEN_MAX).contains(&part.len())
        && part.bytes().all(is_word)
        && !part.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_is_an_identifier_with_at_most_a_schema() {
        assert_eq!(quoted(Dialect::Sqlite, "_inbox2").unwrap(), r#""_inbox2""#);
        assert_eq!(quoted(Dialect::Postgres, "bank.order").unwrap(), r#""bank"."order""#);
        assert_eq!(quoted(Dialect::Mysql, "bank.inbox").unwrap(), "`bank`.`inbox`");
        assert!(quoted(Dialect::Sqlite, &"a".repeat(63)).is_ok());
        let bad = [
            "", ".", "a.", ".a", "a.b.c", "2a", "a b", "a\"b", "a`b", "a'b", "a;b", "a-b", "é", "a\0", "a\n",
        ];
        for name in bad {
            assert!(quoted(Dialect::Postgres, name).is_err(), "{name:?}");
        }
        assert!(quoted(Dialect::Sqlite, &"a".repeat(64)).is_err());
        let error = quoted(Dialect::Sqlite, &"é".repeat(10_000)).unwrap_err();
        assert!(error.to_string().len() < 500, "an error shows the head of a long name");
    }

    proptest! {
        #[test]
        fn what_passes_cannot_end_its_quotes(name in "[a-zA-Z0-9_.\"`';\\-\\\\ ]{0,12}") {
            for (dialect, quote) in [(Dialect::Sqlite, '"'), (Dialect::Postgres, '"'), (Dialect::Mysql, '`')] {
                if let Ok(sql) = quoted(dialect, &name) {
                    prop_assert_eq!(sql.replace(quote, ""), name.clone());
                    prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.'));
                }
            }
        }
    }
}
