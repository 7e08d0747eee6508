package cloudevent_test

import (
	"fmt"

	"mqtt-integration/libs/cloudevent"
)

func ExampleDecode() {
	e, result := cloudevent.Decode(&cloudevent.Record{
		Topic: "events-example-app",
		Value: []byte(`{"temp": 21.50}`),
		Headers: []cloudevent.Header{
			{Key: []byte("ce_specversion"), Value: []byte("1.0")},
			{Key: []byte("ce_id"), Value: []byte("1")},
			{Key: []byte("ce_source"), Value: []byte("drogue://example-app/device1")},
			{Key: []byte("ce_type"), Value: []byte("io.drogue.event.v1")},
			{Key: []byte("content-type"), Value: []byte("application/json")},
		},
	}, cloudevent.Options{})
	fmt.Println(result.Verdict)
	fmt.Println(string(e.AppendStructured(nil)))
	// Output:
	// deliver
	// {"specversion":"1.0","id":"1","source":"drogue://example-app/device1","type":"io.drogue.event.v1","datacontenttype":"application/json","data":{"temp": 21.50}}
}

func ExampleEvent_Properties() {
	e, _ := cloudevent.Decode(&cloudevent.Record{
		Topic: "events-example-app",
		Value: []byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain","data":"on"}`),
		Headers: []cloudevent.Header{
			{Key: []byte("content-type"), Value: []byte("application/cloudevents+json")},
		},
	}, cloudevent.Options{})
	if err := e.Expand(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(e.ContentType(), string(e.Data))
	for name, value := range e.Properties() {
		fmt.Println(name, value)
	}
	// Output:
	// text/plain on
	// specversion 1.0
	// id 1
	// source /s
	// type t
}
