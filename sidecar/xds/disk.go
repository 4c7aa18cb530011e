package xds

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"

	"txmesh/sidecar/xds/envoy"
)

// The last good configuration is a file, and not a row of the store: a store that is shared may be away when it is
// needed, and what one sidecar has accepted is no business of the others. It begins with a line of magic, version and
// SHA-256 of the rest, which is one answer of the protocol for each kind, with its length before it.
const fileMagic = "txmesh-control-plane 1 "

// errDamaged says that a file is not what was written.
var errDamaged = errors.New("is damaged")

// saver keeps the last good configuration on disk. It writes some time after a change, so that a storm of changes costs
// one write, and once more at its end.
type saver struct {
	file    string // empty: nothing is kept
	after   time.Duration
	log     *slog.Logger
	changed chan struct{} // tells run of a change; holds one word

	mu   sync.Mutex // guards sets
	sets map[string]resources
}

// put notes what is good of a type.
func (s *saver) put(url string, good resources) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, known := s.sets[url]
	same := func(a, b *envoy.Resource) bool { return a.Version == b.Version }
	if s.file == "" || known && maps.EqualFunc(old, good, same) {
		return
	}
	s.note(url, good)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *saver) note(url string, good resources) {
	if s.sets == nil {
		s.sets = map[string]resources{}
	}
	s.sets[url] = good
}

func (s *saver) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			select {
			case <-s.changed:
				s.save()
			default:
			}
			return
		case <-s.changed:
		}
		rest(ctx, s.after)
		s.save()
	}
}

func (s *saver) save() {
	s.mu.Lock()
	sets := maps.Clone(s.sets)
	s.mu.Unlock()
	if err := write(s.file, encode(sets)); err != nil {
		s.log.Warn("configuration of the control plane not kept on disk: without it this sidecar cannot start alone with what is in force now", "error", err)
	}
}

// encode makes the bytes of the file.
func encode(sets map[string]resources) []byte {
	var body bytes.Buffer
	for _, url := range []string{typePolicies, typePeers} {
		res := &envoy.DeltaDiscoveryResponse{TypeUrl: url}
		for _, name := range sets[url].names() {
			res.Resources = append(res.Resources, sets[url][name])
		}
		if _, err := protodelim.MarshalTo(&body, res); err != nil {
			panic("xds: message that was read and cannot be written: " + err.Error())
		}
	}
	sum := sha256.Sum256(body.Bytes())
	return append([]byte(fileMagic+hex.EncodeToString(sum[:])+"\n"), body.Bytes()...)
}

// decode reads the bytes of the file.
func decode(data []byte) (map[string]*envoy.DeltaDiscoveryResponse, error) {
	head, body, found := bytes.Cut(data, []byte("\n"))
	sum := sha256.Sum256(body)
	switch {
	case !found || !strings.HasPrefix(string(head), "txmesh-control-plane "):
		return nil, fmt.Errorf("%w: it does not begin as such files do", errDamaged)
	case !strings.HasPrefix(string(head), fileMagic):
		return nil, errors.New("was written by another release")
	case string(head) != fileMagic+hex.EncodeToString(sum[:]):
		return nil, fmt.Errorf("%w: its checksum does not match", errDamaged)
	}
	out := map[string]*envoy.DeltaDiscoveryResponse{}
	for r := bytes.NewReader(body); ; {
		res := &envoy.DeltaDiscoveryResponse{}
		err := protodelim.UnmarshalOptions{MaxSize: receiveMax}.UnmarshalFrom(r, res)
		if errors.Is(err, io.EOF) { // between two messages; within one the end is unexpected
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		out[res.TypeUrl] = res
	}
}

// write replaces a file. After a crash there is the old one or the new one, whole.
func write(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Restore puts the last good configuration in force that is on disk, if there is one that can be used; what cannot be is
// reported in the log. The error is that of the hook Policies. It comes before Run.
func (c *Client) Restore(ctx context.Context) error {
	data, err := os.ReadFile(c.opt.File)
	if c.opt.File == "" || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var answers map[string]*envoy.DeltaDiscoveryResponse
	if err == nil {
		answers, err = decode(data)
	}
	if err != nil {
		c.opt.Log.Error("last good configuration of the control plane not used, starting without: nothing is lost but the start without a control plane",
			"file", c.opt.File, "error", err)
		return nil
	}
	for _, k := range c.kinds {
		if res := answers[k.url]; k.kept && res != nil {
			for _, problem := range k.take(res) {
				c.opt.Log.Error("part of the last good configuration not used", "file", c.opt.File, "kind", k.name, "error", problem)
			}
			c.saver.note(k.url, k.good)
		}
	}
	if c.good == nil {
		return nil
	}
	c.opt.Log.Info("last good configuration of the control plane read from disk", "file", c.opt.File,
		"policies", len(answers[typePolicies].GetResources()), "services", len(answers[typePeers].GetResources()))
	return c.use(ctx, c.good)
}
