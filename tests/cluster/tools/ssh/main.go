// Command node-ssh is a minimal SSH server that runs inside a node: the
// disruptive tests of the storage suite access nodes by SSH only. It accepts
// clients that have its own key, and one command per session.
package main

import (
	"bytes"
	"errors"
	"flag"
	"log"
	"net"
	"os"
	"os/exec"

	"golang.org/x/crypto/ssh"
)

func main() {
	listen := flag.String("listen", "", "address and port to listen on")
	keyFile := flag.String("key", "", "private key file, used by the server and its client")
	flag.Parse()
	text, err := os.ReadFile(*keyFile)
	if err != nil {
		log.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	config := configOf(key)
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn, config)
	}
}

func configOf(key ssh.Signer) *ssh.ServerConfig {
	allowed := key.PublicKey().Marshal()
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, offered ssh.PublicKey) (*ssh.Permissions, error) {
			if !bytes.Equal(offered.Marshal(), allowed) {
				return nil, errors.New("unknown public key")
			}
			return nil, nil
		},
	}
	config.AddHostKey(key)
	return config
}

func serve(conn net.Conn, config *ssh.ServerConfig) {
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		log.Print(err)
		conn.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	for channel := range channels {
		if channel.ChannelType() != "session" {
			_ = channel.Reject(ssh.UnknownChannelType, "only session channels are supported")
			continue
		}
		session, requests, err := channel.Accept()
		if err != nil {
			log.Print(err)
			return
		}
		go serveSession(session, requests)
	}
}

func serveSession(session ssh.Channel, requests <-chan *ssh.Request) {
	defer session.Close()
	for request := range requests {
		var body struct{ Command string }
		if request.Type != "exec" || ssh.Unmarshal(request.Payload, &body) != nil {
			_ = request.Reply(false, nil)
			continue
		}
		_ = request.Reply(true, nil)
		status := struct{ Code uint32 }{run(body.Command, session)}
		_, _ = session.SendRequest("exit-status", false, ssh.Marshal(status))
		return
	}
}

func run(command string, session ssh.Channel) uint32 {
	shell := exec.Command("/bin/bash", "-c", command)
	shell.Stdout, shell.Stderr = session, session.Stderr()
	err := shell.Run()
	code := uint32(shell.ProcessState.ExitCode())
	log.Printf("%d: %s", code, command)
	if err != nil && code == 0 {
		log.Print(err)
		return 255
	}
	return code
}
