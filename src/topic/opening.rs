//! `TopicBuilder`: how a topic is created, or the one that is there is opened; in memory, and out of what a disk has kept.

use std::any::type_name;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use crate::broker::Broker;
use crate::codec::{Codec, as_made, bytes_of, own_codec};
use crate::engine::local::broker::{AnyTopic, Phase};
use crate::engine::local::recovered::StoredTopic;
use crate::engine::local::revival::{Revivable, RevivingCodec};
use crate::engine::local::staging::Stored;
use crate::engine::local::topic::{Fingerprint, TopicConfig, TopicCore, TopicOptions, Weigh};
use crate::error::{CodecError, CreateError};
use crate::journal::record::CODEC_LEN_MAX;
use crate::name::Name;
use crate::options::{Capacity, DedupWindow, Retention};
use crate::topic::Topic;

/// Options of a topic that is created, or expectations of one that is opened.
pub struct TopicBuilder<E> {
    broker: Broker,
    name: String,
    retention: Option<Retention>,
    capacity: Option<Capacity>,
    dedup: Option<DedupWindow>,
    codec: Option<Arc<dyn Codec<E>>>,
    fingerprint: Option<Fingerprint<E>>,
    weigh: Option<Weigh<E>>,
}

impl<E: Send + Sync + 'static> TopicBuilder<E> {
    pub(crate) fn new(broker: Broker, name: &str, _event: PhantomData<E>) -> Self {
        TopicBuilder {
            broker,
            name: name.to_owned(),
            retention: None,
            capacity: None,
            dedup: None,
            codec: None,
            fingerprint: None,
            weigh: None,
        }
    }

    /// How long messages are kept that every subscription has settled. [`Retention::until_acked`] unless told otherwise.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = Some(retention);
        self
    }

    /// How much the topic holds that is not settled by all, and what a publisher meets then. No limit unless told otherwise.
    pub fn capacity(mut self, capacity: Capacity) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// How long idempotency ids are remembered. 10 minutes and 1,000,000 ids unless told otherwise.
    pub fn dedup(mut self, window: DedupWindow) -> Self {
        self.dedup = Some(window);
        self
    }

    /// How events become bytes where bytes are needed. In memory that is only to compare the payloads of two messages under one idempotency id.
    pub fn codec(mut self, codec: impl Codec<E>) -> Self {
        self.codec = Some(Arc::new(codec));
        self
    }

    /// Tells two payloads apart, for messages under one idempotency id: equal events must have equal fingerprints. Called by the publisher, under no lock,
    /// for messages with an id only. Raw bytes and strings need none.
    pub fn fingerprint(mut self, fingerprint: impl Fn(&E) -> u64 + Send + Sync + 'static) -> Self {
        self.fingerprint = Some(Arc::new(move |event| Ok(fingerprint(event))));
        self
    }

    /// An event's bytes, for every limit in bytes. Its length for raw bytes and strings, else `size_of::<E>()`, unless told otherwise. Called by the publisher, under no lock.
    pub fn weigh(mut self, weigh: impl Fn(&E) -> u64 + Send + Sync + 'static) -> Self {
        self.weigh = Some(Weigh::User(Arc::new(weigh)));
        self
    }

    /// Creates the topic.
    ///
    /// # Errors
    /// [`CreateError::AlreadyExists`], and what is wrong with name or options. Nothing changed.
    pub fn create(self) -> Result<Topic<E>, CreateError> {
        let name = self.check()?;
        let broker = self.broker.clone();
        let core = &broker.presence.core;
        // Before the options: what they lack for a new one does not matter then.
        if core.is_recovered(&name) || core.find_topic(name.as_str()).is_some() {
            return Err(CreateError::AlreadyExists);
        }
        let options = self.options()?;
        match register(&broker, &name, || options)? {
            Ok(core) => Ok(Topic { core, broker }),
            Err(_existing) => Err(CreateError::AlreadyExists),
        }
    }

    /// Creates the topic, or attaches to the one of this name. Options that were set here explicitly must then be those that it has; a closure can only be given once.
    ///
    /// # Errors
    /// [`CreateError::ConfigMismatch`] and [`CreateError::TypeMismatch`] for one that exists, and what is wrong with name or options. Nothing changed.
    pub fn open(self) -> Result<Topic<E>, CreateError> {
        let name = self.check()?;
        let broker = self.broker.clone();
        let existing = match broker.presence.core.find_topic(name.as_str()) {
            Some(existing) => existing,
            None => {
                let options = self.options()?;
                match self.revive_or_register(&name, options)? {
                    Ok(core) => return Ok(Topic { core, broker }),
                    Err(existing) => existing,
                }
            }
        };
        let stored = existing.event_type();
        let Ok(core) = existing.into_any().downcast::<TopicCore<E>>() else {
            return Err(CreateError::TypeMismatch {
                topic: name.to_string(),
                stored,
                asked: type_name::<E>(),
            });
        };
        core.wait_for_creation().map_err(CreateError::from)?;
        self.compare(&core)?;
        Ok(Topic { core, broker })
    }

    fn check(&self) -> Result<Name, CreateError> {
        let name = parse_name(&self.name)?;
        let invalid =
            |option, reason: &str| Err(CreateError::InvalidOption { option, reason: reason.to_owned() });
        if let Some(reason) = self.retention.and_then(|retention| retention.problem()) {
            return invalid("retention", reason);
        }
        if let Some(reason) = self.capacity.and_then(|capacity| capacity.problem()) {
            return invalid("capacity", reason);
        }
        if let Some(reason) = self.dedup.and_then(|dedup| dedup.problem()) {
            return invalid("dedup", reason);
        }
        if self.broker.presence.core.phase() != Phase::Open {
            return Err(CreateError::Closed);
        }
        Ok(name)
    }

    /// Of a topic that is on disk and that nobody has opened since: with its own options. Else a new one.
    fn revive_or_register(
        &self,
        name: &Name,
        mut options: TopicOptions<E>,
    ) -> Result<Registered<E>, CreateError> {
        let core = &self.broker.presence.core;
        let stored = core.with_recovered(name, |stored| {
            self.take_as_bytes(stored, &mut options);
            self.compare_stored(stored, &options)?;
            Ok::<_, CreateError>(Revivable::from(stored))
        });
        let (Some(stored), Some(Stored { codec, .. })) = (stored, &options.stored) else {
            return register(&self.broker, name, || options);
        };
        let codec = RevivingCodec { codec: codec.clone(), is_raw: self.codec.is_none() };
        let topic = TopicCore::of_stored(core, name, stored?, &codec, options)
            .map_err(|reason| CreateError::InvalidOption { option: "codec", reason })?;
        match core.revive(name, |stored| topic.revive(stored)) {
            Some(topic) => {
                topic.resume();
                Ok(Ok(topic))
            }
            // Somebody else was faster, or has deleted it.
            None => core.find_topic(name.as_str()).map(Err).ok_or(CreateError::NotFound),
        }
    }

    fn compare_stored(&self, stored: &StoredTopic, options: &TopicOptions<E>) -> Result<(), CreateError> {
        let config =
            TopicConfig { retention: stored.retention, capacity: stored.capacity, dedup: stored.window };
        self.compare_config(config)?;
        let there = |is_there: bool| if is_there { "a closure".to_owned() } else { "none".to_owned() };
        let mismatch = |option, stored: String, asked: String| {
            Err(CreateError::ConfigMismatch { name: self.name.clone(), option, stored, asked })
        };
        if options.codec != stored.codec {
            let said = |codec: &Option<String>| codec.clone().unwrap_or_else(|| "none".into());
            return mismatch("codec", said(&stored.codec), said(&options.codec));
        }
        if options.has_own_fingerprint != stored.has_fingerprint {
            let asked = there(options.has_own_fingerprint);
            return mismatch("fingerprint", there(stored.has_fingerprint), asked);
        }
        let has_weigh = matches!(options.weigh, Weigh::User(_));
        if has_weigh != stored.has_weigh {
            return mismatch("weigh", there(stored.has_weigh), there(has_weigh));
        }
        Ok(())
    }

    /// Events that are asked for as bytes are as the topic's own codec has made them, and need none of the closures that know what it makes them of.
    fn take_as_bytes(&self, stored: &StoredTopic, options: &mut TopicOptions<E>) {
        let (None, Some(by), Some(kept)) = (&self.codec, &stored.codec, &mut options.stored) else { return };
        let Some(codec) = as_made(by) else { return };
        kept.codec = codec;
        options.codec = Some(by.clone());
        if stored.has_weigh && self.weigh.is_none() {
            let bytes = bytes_of::<E>();
            let len =
                move |event: &E| bytes.and_then(|bytes| bytes(event)).map_or(0, |bytes| bytes.len() as u64);
            options.weigh = Weigh::User(Arc::new(len));
        }
        if stored.has_fingerprint && self.fingerprint.is_none() {
            let lacks =
                || CodecError::new("the topic tells payloads apart by a fingerprint, which was not given");
            options.fingerprint = Some(Arc::new(move |_| Err(lacks())));
            options.has_own_fingerprint = true;
        }
    }

    /// How the events become bytes, where they have to.
    fn stored(&self) -> Result<Option<Stored<E>>, CreateError> {
        let Some(store) = &self.broker.presence.core.store else { return Ok(None) };
        let is_raw = self.codec.is_none();
        let codec = self.codec.clone().or_else(own_codec).ok_or_else(|| self.without_codec())?;
        if codec.name().len() > CODEC_LEN_MAX {
            let reason = format!("a codec's name has at most {CODEC_LEN_MAX} bytes");
            return Err(CreateError::InvalidOption { option: "codec", reason });
        }
        Ok(Some(Stored { store: store.clone(), codec, is_raw }))
    }

    fn without_codec(&self) -> CreateError {
        let core = &self.broker.presence.core;
        let recovered = Name::parse(&self.name).ok();
        let kept = recovered.and_then(|name| core.with_recovered(&name, |stored| stored.codec.clone()));
        if let Some(stored) = kept.flatten() {
            let asked = "none".to_owned();
            return CreateError::ConfigMismatch { name: self.name.clone(), option: "codec", stored, asked };
        }
        let event = type_name::<E>();
        let reason =
            format!("on disk events are bytes, and {event} has no codec of its own: give the topic one");
        CreateError::InvalidOption { option: "codec", reason }
    }

    fn options(&self) -> Result<TopicOptions<E>, CreateError> {
        let stored = self.stored()?;
        let codec = self.codec.clone();
        let by_codec = codec.map(|codec| -> Fingerprint<E> {
            Arc::new(move |event| {
                let mut bytes = Vec::new();
                codec.encode(event, &mut bytes)?;
                Ok(hash_of(&bytes))
            })
        });
        let codec = stored.as_ref().map(|stored| stored.codec.name().to_owned());
        Ok(TopicOptions {
            retention: self.retention.unwrap_or_default(),
            capacity: self.capacity.unwrap_or_default(),
            dedup: self.dedup.unwrap_or_default(),
            weigh: self.weigh.clone().or_else(|| bytes_of().map(Weigh::Raw)).unwrap_or(Weigh::Size),
            fingerprint: self.fingerprint.clone().or(by_codec).or_else(raw_fingerprint),
            has_own_fingerprint: self.fingerprint.is_some(),
            codec: codec.or_else(|| self.codec.as_ref().map(|codec| codec.name().to_owned())),
            stored,
        })
    }

    fn compare_config(&self, stored: TopicConfig) -> Result<(), CreateError> {
        let mismatch = |option, stored: String, asked: String| {
            Err(CreateError::ConfigMismatch { name: self.name.clone(), option, stored, asked })
        };
        if let Some(asked) = self.retention.filter(|asked| *asked != stored.retention) {
            return mismatch("retention", format!("{:?}", stored.retention), format!("{asked:?}"));
        }
        if let Some(asked) = self.capacity.filter(|asked| *asked != stored.capacity) {
            return mismatch("capacity", format!("{:?}", stored.capacity), format!("{asked:?}"));
        }
        if let Some(asked) = self.dedup.filter(|asked| *asked != stored.dedup) {
            return mismatch("dedup", format!("{:?}", stored.dedup), format!("{asked:?}"));
        }
        Ok(())
    }

    fn compare(&self, core: &TopicCore<E>) -> Result<(), CreateError> {
        self.compare_config(core.config())?;
        let mismatch = |option, stored: String, asked: String| {
            Err(CreateError::ConfigMismatch { name: self.name.clone(), option, stored, asked })
        };
        if let Some(asked) = self.codec.as_ref().filter(|asked| core.codec.as_deref() != Some(asked.name())) {
            let stored = core.codec.clone().unwrap_or_else(|| "none".into());
            return mismatch("codec", stored, asked.name().to_owned());
        }
        let closures = [("fingerprint", self.fingerprint.is_some()), ("weigh", self.weigh.is_some())];
        for (option, is_given) in closures {
            if is_given {
                return mismatch(option, "the topic's own".into(), "a second closure".into());
            }
        }
        Ok(())
    }
}

/// A topic of one's own making, or else the one that has the name.
type Registered<E> = Result<Arc<TopicCore<E>>, Arc<dyn AnyTopic>>;

fn register<E: Send + Sync + 'static>(
    broker: &Broker,
    name: &Name,
    options: impl FnOnce() -> TopicOptions<E>,
) -> Result<Registered<E>, CreateError> {
    let core = &broker.presence.core;
    let mut made = None;
    let registered = core.register_topic(name, || {
        let topic = TopicCore::new(name.clone(), core.clone(), options());
        // Under the lock: nobody publishes to it before the journal knows that it is there.
        made = Some((topic.clone(), topic.add_creation()));
        topic
    });
    if let Err(existing) = registered {
        return Ok(Err(existing));
    }
    let Some((topic, added)) = made else { unreachable!("what is registered was made") };
    if let Err(fault) = added.and_then(|()| topic.wait_for_creation()) {
        core.unregister_topic(name.as_str(), topic.log.incarnation());
        return Err(fault.into());
    }
    Ok(Ok(topic))
}

pub(crate) fn parse_name(name: &str) -> Result<Name, CreateError> {
    Name::parse(name).map_err(|reason| {
        let shown: String = name.chars().take(64).collect();
        CreateError::InvalidName { name: shown, reason }
    })
}

fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn raw_fingerprint<E: Send + Sync + 'static>() -> Option<Fingerprint<E>> {
    let bytes = bytes_of::<E>()?;
    Some(Arc::new(move |event| Ok::<u64, CodecError>(bytes(event).map_or(0, hash_of))))
}

impl<E> fmt::Debug for TopicBuilder<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}
