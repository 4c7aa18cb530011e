package dtm

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"txmesh/policies"
)

// Topics are rows of the category that KV queries know as "topics".
const categoryTopics = "topics"

const topicRow = categoryTopics + "/"

// kvView is a row as scanKV and queryKV show it.
type kvView struct {
	ID         int       `json:"id"`
	CreateTime time.Time `json:"create_time"`
	UpdateTime time.Time `json:"update_time"`
	Category   string    `json:"cat"`
	Key        string    `json:"k"`
	Value      string    `json:"v"`
	Version    uint64    `json:"version"`
}

type subscriber struct {
	URL    string `json:"url"`
	Remark string `json:"remark"`
}

// topics keeps who subscribed to what. A change is durable, and seen by the next message, when it returns.
type topics struct {
	rows Rows
	mu   sync.Mutex // held over read and write of one row
}

func (t *topics) load(ctx context.Context, name string) (kv kvView, subs []subscriber, found bool, err error) {
	row, found, err := t.rows.Get(ctx, topicRow+name)
	if err != nil || !found {
		return kv, nil, false, err
	}
	if err = json.Unmarshal(row, &kv); err == nil {
		err = json.Unmarshal([]byte(kv.Value), &subs)
	}
	return kv, subs, err == nil, err
}

// urls returns the subscribers of a topic that a message names.
func (t *topics) urls(ctx context.Context, name string) ([]string, error) {
	_, subs, found, err := t.load(ctx, name)
	switch {
	case err != nil:
		return nil, err
	case !found || len(subs) == 0:
		return nil, missing("topic not found: %q; subscribe to it first", name)
	}
	urls := make([]string, len(subs))
	for i, s := range subs {
		urls[i] = s.URL
	}
	return urls, nil
}

func (s *Service) subscribe(ctx context.Context, name, url, remark string) error {
	if err := s.may(ctx, policies.Operate); err != nil {
		return err
	}
	if err := checkTopic(name, url); err != nil {
		return err
	}
	t := &s.topics
	t.mu.Lock()
	defer t.mu.Unlock()
	kv, subs, found, err := t.load(ctx, name)
	if err != nil {
		return err
	}
	for _, old := range subs {
		if old.URL == url {
			return &fault{status: 409, message: "this url exists"}
		}
	}
	now := s.Now().UTC()
	if !found {
		kv = kvView{CreateTime: now, Category: categoryTopics, Key: name}
	}
	return t.save(ctx, kv, append(subs, subscriber{url, remark}), now)
}

func (s *Service) unsubscribe(ctx context.Context, name, url string) error {
	if err := s.may(ctx, policies.Operate); err != nil {
		return err
	}
	if err := checkTopic(name, url); err != nil {
		return err
	}
	t := &s.topics
	t.mu.Lock()
	defer t.mu.Unlock()
	kv, subs, found, err := t.load(ctx, name)
	switch {
	case err != nil:
		return err
	case !found:
		return missing("no such a topic: %q", name)
	case len(subs) == 0:
		return missing("this topic is empty: %q", name)
	}
	for i, old := range subs {
		if old.URL == url {
			return t.save(ctx, kv, append(subs[:i], subs[i+1:]...), s.Now().UTC())
		}
	}
	return missing("no such an url : %q", url)
}

func (s *Service) deleteTopic(ctx context.Context, name string) error {
	if err := s.may(ctx, policies.Operate); err != nil {
		return err
	}
	if name == "" {
		return invalid("empty topic: name one")
	}
	t := &s.topics
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, _, found, err := t.load(ctx, name); err != nil || !found {
		if err == nil {
			err = missing("storage: NotFound: topic %q", name)
		}
		return err
	}
	return t.rows.Put(ctx, topicRow+name, nil)
}

func (t *topics) save(ctx context.Context, kv kvView, subs []subscriber, now time.Time) error {
	value, err := json.Marshal(subs)
	if err != nil {
		panic("dtm: subscribers: " + err.Error())
	}
	kv.Value, kv.Version, kv.UpdateTime = string(value), kv.Version+1, now
	row, err := json.Marshal(kv)
	if err != nil {
		panic("dtm: topic: " + err.Error())
	}
	return t.rows.Put(ctx, topicRow+kv.Key, row)
}

// topicMax bounds the name of a topic.
const topicMax = 256

func checkTopic(name, url string) error {
	switch {
	case name == "":
		return invalid("empty topic: name one")
	case len(name) > topicMax:
		return invalid("topic has %d bytes, at most %d", len(name), topicMax)
	case url == "":
		return invalid("empty url: give the subscriber's")
	}
	return nil
}

// scanned is the answer of scanKV and queryKV.
type scanned struct {
	KV           []kvView `json:"kv"`
	NextPosition *string  `json:"next_position,omitempty"`
}

// queryKV returns one row, or all of a category if no key is given.
func (s *Service) queryKV(ctx context.Context, category, key string) (*scanned, error) {
	if err := s.mayLook(ctx); err != nil {
		return nil, err
	}
	out := &scanned{KV: []kvView{}}
	if category != categoryTopics {
		return out, nil
	}
	kv, _, found, err := s.topics.load(ctx, key)
	if found {
		out.KV = append(out.KV, kv)
	}
	return out, err
}

// scanKV pages through a category by key. The position is the last key of the page before.
func (s *Service) scanKV(ctx context.Context, category, position string, limit int) (*scanned, error) {
	if err := s.mayLook(ctx); err != nil {
		return nil, err
	}
	next := ""
	out := &scanned{KV: []kvView{}, NextPosition: &next}
	if category != categoryTopics {
		return out, nil
	}
	for row, err := range s.Rows.Scan(ctx, topicRow) {
		if err != nil {
			return nil, err
		}
		if strings.TrimPrefix(row.Key, topicRow) <= position && position != "" {
			continue
		}
		if len(out.KV) == limit {
			next = out.KV[limit-1].Key
			break
		}
		var kv kvView
		if err := json.Unmarshal(row.Value, &kv); err != nil {
			return nil, err
		}
		out.KV = append(out.KV, kv)
	}
	return out, nil
}
