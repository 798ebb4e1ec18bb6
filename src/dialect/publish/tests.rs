use super::*;

fn limits() -> Limits {
    Limits {
        room_id_bytes_max: 8,
        user_id_bytes_max: 4,
        ws_message_bytes_max: 10,
        raw_message_bytes_max: 6,
        ..Limits::default()
    }
}

fn native(content: &'static str, user_id: Option<&'static str>) -> Content<'static> {
    Content::Native { content, user_id: user_id.map(Cow::from) }
}

#[test]
fn reads_items() {
    for (item, room_id, content) in [
        (r#"{"room_id":"lobby","content":{"a": 1}}"#, "lobby", native(r#"{"a": 1}"#, None)),
        (r#" {"content": [ 1e400 ] ,"room_id":"l\u006f"} "#, "lo", native("[ 1e400 ]", None)),
        (r#"{"room_id":"a","content":null,"user_id":"bob"}"#, "a", native("null", Some("bob"))),
        (r#"{"room_id":"a","content":1,"user_id":null,"x":{}}"#, "a", native("1", None)),
        (r#"{"room_id":"12345678","content":12345678.0}"#, "12345678", native("12345678.0", None)),
        (r#"{"room_id":"a b/c","text":"h\u00e9"}"#, "a b/c", Content::Text("hé".into())),
        (r#"{"room_id":"a","text":"","user_id":null}"#, "a", Content::Text("".into())),
        (r#"{"room_id":"a","text":"123456"}"#, "a", Content::Text("123456".into())),
        (r#"{"room_id":"a","binary":"AP8="}"#, "a", Content::Binary(vec![0, 255])),
        (r#"{"room_id":"a","binary":""}"#, "a", Content::Binary(vec![])),
        (r#"{"room_id":"a","binary":"MTIzNDU2"}"#, "a", Content::Binary(b"123456".into())),
    ] {
        assert_eq!(parse(item, &limits()), Ok(Publication { room_id: room_id.into(), content }));
    }
}

#[test]
fn refuses_items_with_the_right_code() {
    use PublishError::*;
    for (item, error) in [
        ("", InvalidJson),
        (r#"{"room_id":"a","content":1"#, InvalidJson),
        (r#"{"room_id":"a","content":1} x"#, InvalidJson),
        (r#"{"room_id":"a","content":tru}"#, InvalidJson),
        (r#""room_id":"a","content":1}"#, InvalidJson),
        ("7", InvalidMessage),
        ("1e400", InvalidMessage),
        ("null", InvalidMessage),
        (r#"["a",null,"b",null,null]"#, InvalidMessage),
        (r#"{"room_id":"a","room_id":"a","content":1}"#, InvalidMessage),
        (r#"{"room_id":5,"content":1}"#, InvalidMessage),
        (r#"{"room_id":"a","content":1,"text":"b"}"#, InvalidMessage),
        (r#"{"room_id":"a","text":"b","binary":""}"#, InvalidMessage),
        (r#"{"room_id":"a","content":1,"binary":null}"#, InvalidMessage),
        (r#"{"room_id":"a","text":1}"#, InvalidMessage),
        (r#"{"room_id":"a","text":null}"#, InvalidMessage),
        (r#"{"room_id":"a","text":"b","user_id":"bob"}"#, InvalidMessage),
        (r#"{"room_id":"a","binary":"AP8"}"#, InvalidMessage),
        (r#"{"room_id":"a","binary":"AP-_"}"#, InvalidMessage),
        (r#"{"room_id":"a","binary":[1]}"#, InvalidMessage),
        (r#"{"room_id":"a","content":1,"user_id":7}"#, InvalidMessage),
        ("{}", MissingField),
        (r#"{"content":1}"#, MissingField),
        (r#"{"room_id":"a"}"#, MissingField),
        (r#"{"room_id":"a","user_id":"bob"}"#, MissingField),
        (r#"{"room_id":"","content":1}"#, InvalidRoomId),
        (r#"{"room_id":"123456789","content":1}"#, InvalidRoomId),
        (r#"{"room_id":"a\n","text":"b"}"#, InvalidRoomId),
        (r#"{"room_id":"a","content":1,"user_id":""}"#, InvalidUserId),
        (r#"{"room_id":"a","content":1,"user_id":"12345"}"#, InvalidUserId),
        (r#"{"room_id":"a","content":123456789.0}"#, MessageTooLong),
        (r#"{"room_id":"a","text":"1234567"}"#, MessageTooLong),
        (r#"{"room_id":"a","binary":"MTIzNDU2Nw=="}"#, MessageTooLong),
    ] {
        assert_eq!(parse(item, &limits()), Err(error), "{item}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of items take minutes")]
fn splits_batches() {
    let batch = |items: usize| format!(r#"{{"items":[{}]}}"#, vec!["1"; items].join(","));
    assert_eq!(parse_batch(&batch(0)).expect("empty").len(), 0);
    assert_eq!(parse_batch(&batch(BATCH_ITEMS_MAX)).expect("full").len(), BATCH_ITEMS_MAX);
    let items = parse_batch(r#" {"x":0, "items" : [ {"a": [1]} , 2 ] } "#).expect("two");
    assert_eq!(items.iter().map(|item| item.get()).collect::<Vec<_>>(), [r#"{"a": [1]}"#, "2"]);
    for (body, error) in [
        ("", PublishError::InvalidJson),
        (r#"{"items":[1,2}"#, PublishError::InvalidJson),
        (r#"{"items":[1]}{"#, PublishError::InvalidJson),
        (r#"[{"room_id":"a","content":1}]"#, PublishError::InvalidMessage),
        ("[[]]", PublishError::InvalidMessage),
        (r#"{"items":{}}"#, PublishError::InvalidMessage),
        (r#"{"items":[],"items":[]}"#, PublishError::InvalidMessage),
        ("{}", PublishError::MissingField),
        (&batch(BATCH_ITEMS_MAX + 1), PublishError::TooManyItems),
        (&batch(20 * BATCH_ITEMS_MAX), PublishError::TooManyItems),
    ] {
        let found = parse_batch(body).err();
        assert_eq!(found, Some(error), "{body:.60}");
    }
}
