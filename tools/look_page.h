/* The page of tools/look.c: what follows the data, which is one <script> that sets model, pieces, nLayers, nHeads,
   full, weights, lens and norms. Strings in it use single quotes. */
#ifndef LOOK_PAGE_H
#define LOOK_PAGE_H

static const char *const look_head[] = {
    "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>",
    "<meta name='viewport' content='width=device-width'><title>Inside a model</title><style>",
    "body{font:15px/1.5 Helvetica,Arial,sans-serif;color:#222;max-width:1000px;margin:24px auto;padding:0 "
    "16px}",
    "h1{font-size:22px;margin:0}h2{font-size:18px;margin:28px 0 0}p{margin:4px 0 10px}",
    "#text span{padding:3px 1px;cursor:pointer;white-space:pre-wrap}#text .on{outline:2px solid #222}",
    "#heads{border-collapse:collapse}#heads td{padding:2px}#heads th{font-weight:normal;color:#555;padding:0 "
    "6px}",
    "#heads canvas{width:76px;height:76px;image-rendering:pixelated;border:1px solid #bbb;cursor:pointer}",
    "#heads canvas.on{outline:3px solid #222}.scroll{overflow-x:auto}",
    "#lens{border-collapse:collapse;font-size:13px}#lens th{font-weight:normal;color:#555;text-align:right;",
    "padding:0 6px;white-space:pre}#lens td{border:1px solid #ddd;padding:1px "
    "5px;white-space:pre;cursor:pointer}",
    "#lens td.hit{font-weight:bold;text-decoration:underline}#lens .on{outline:2px solid #222}",
    "#says,#takes{min-height:1.5em;color:#333}</style></head><body>",
    "<noscript><p>This page draws its pictures with JavaScript, which is switched off here.</p></noscript>",
};

static const char *const look_body[] = {
    "<h1>Inside <span id='model'></span></h1>",
    "<p>One pass over the text below. Click a token, a head or a cell. Darker is more.</p>",
    "<div id='text'></div><p id='takes'></p>",
    "<h2>Attention</h2><p>Each square is a head: row by row the tokens that read, column by column those "
    "that they ",
    "read from. Each row's weights add up to 1. The text above is shaded by the row of the chosen token.</p>",
    "<div class='scroll'><table id='heads'></table></div><p id='which'></p>",
    "<div class='scroll'><canvas id='head'></canvas></div>",
    "<h2>Logit lens</h2><p>What each layer would say next if the model ended there: the last norm and the "
    "output ",
    "matrix over its stream. Shaded by probability; underlined where it is the token that follows.</p>",
    "<p id='says'></p><div class='scroll'><table id='lens'></table></div>",
    "<h2>Norms of the residual stream</h2><p>The length of each token's vector after the embedding (E) and "
    "after each ",
    "layer's attention (a) and feed-forward half (f). Black: the chosen token; gray: the others.</p>",
    "<div class='scroll'><svg id='norms' width='960' height='280' font-size='12'></svg></div><script>",
    "'use strict';const n=pieces.length,by=id=>document.getElementById(id),",
    "name=i=>'\\u201c'+pieces[i].replace(/ /g,'\\u00b7')+'\\u201d';",
    "let layer=0,head=0,token=n-1;",
    "/* a head's rows, one after the other: of a causal mask only what a token sees */",
    "const at=(i,j)=>2*(full?i*n+j:i*(i+1)/2+j),sees=i=>full?n:i+1;",
    "const weight=(l,h,i,j)=>j<sees(i)?parseInt(weights[l*nHeads+h].substr(at(i,j),2),16)/255:0;",
    "const gray=p=>{const v=Math.round(255-215*p);return 'rgb('+v+','+v+','+v+')'};",
    "const ink=p=>p>0.5?'white':'#222';",
    "function make(parent,tag,text){const "
    "e=document.createElement(tag);if(text!==undefined)e.textContent=text;",
    "parent.appendChild(e);return e}",
    "function drawText(){const box=by('text');box.textContent='';pieces.forEach((t,i)=>{",
    "const "
    "e=make(box,'span',t),p=weight(layer,head,token,i);e.style.background=gray(p);e.style.color=ink(p)"
    ";",
    "e.title='token '+i+', weight "
    "'+p.toFixed(2);if(i===token)e.className='on';e.onclick=()=>choose(layer,head,i)});",
    "const best=pieces.map((t,j)=>[weight(layer,head,token,j),j]).sort((a,b)=>b[0]-a[0]).slice(0,4);",
    "by('takes').textContent='In layer '+(layer+1)+', head '+(head+1)+', '+name(token)+' reads '+",
    "best.filter(b=>b[0]>0).map(b=>b[0].toFixed(2)+' from '+name(b[1])).join(', ')+'.'}",
    "function small(canvas,l,h){canvas.width=canvas.height=n;const c=canvas.getContext('2d'),",
    "d=c.createImageData(n,n);for(let i=0;i<n;i++)for(let j=0;j<n;j++){const v=255-215*weight(l,h,i,j),",
    "k=4*(i*n+j);d.data[k]=d.data[k+1]=d.data[k+2]=v;d.data[k+3]=255}c.putImageData(d,0,0)}",
    "function makeHeads(){const table=by('heads'),top=make(table,'tr');make(top,'th','');",
    "for(let h=0;h<nHeads;h++)make(top,'th','head '+(h+1));for(let l=0;l<nLayers;l++){const "
    "row=make(table,'tr');",
    "make(row,'th','layer '+(l+1));for(let h=0;h<nHeads;h++){const "
    "e=make(make(row,'td'),'canvas');small(e,l,h);",
    "e.id='h'+l+'_'+h;e.onclick=()=>choose(l,h,token)}}}",
    "const "
    "cell=Math.max(11,Math.min(28,Math.floor(720/"
    "n))),edge=22+8*Math.min(14,Math.max(...pieces.map(t=>t.length)));",
    "function drawHead(){const "
    "e=by('head'),c=e.getContext('2d');e.width=edge+n*cell+8;e.height=edge+n*cell+8;",
    "by('which').textContent='Layer '+(layer+1)+', head '+(head+1)+' (move over it for the numbers):';",
    "c.font=Math.min(13,cell)+'px Helvetica,Arial,sans-serif';c.textBaseline='middle';",
    "for(let i=0;i<n;i++){const "
    "label=pieces[i].replace(/ /g,'\\u00b7').slice(0,14),m=edge+(i+0.5)*cell;",
    "c.fillStyle='#222';c.textAlign='right';c.fillText(label,edge-5,m);c.save();c.translate(m,edge-5);",
    "c.rotate(-Math.PI/2);c.textAlign='left';c.fillText(label,0,0);c.restore();",
    "for(let j=0;j<n;j++){c.fillStyle=gray(weight(layer,head,i,j));",
    "c.fillRect(edge+j*cell,edge+i*cell,cell-0.5,cell-0.5)}}",
    "c.strokeStyle='#888';c.strokeRect(edge-0.5,edge-0.5,n*cell+0.5,n*cell+0.5);",
    "c.strokeStyle='#222';c.lineWidth=2;c.strokeRect(edge-1,edge+token*cell-1,n*cell+1,cell+1)}",
    "function pointed(event){const r=by('head').getBoundingClientRect(),",
    "j=Math.floor((event.clientX-r.left-edge)/cell),i=Math.floor((event.clientY-r.top-edge)/cell);",
    "return i>=0&&j>=0&&i<n&&j<n?[i,j]:null}",
    "by('head').onmousemove=e=>{const p=pointed(e);if(p)by('which').textContent='Layer '+(layer+1)+', head "
    "'+",
    "(head+1)+': '+name(p[0])+' reads '+weight(layer,head,p[0],p[1]).toFixed(2)+' from '+name(p[1])+'.'};",
    "by('head').onclick=e=>{const p=pointed(e);if(p)choose(layer,head,p[0])};",
    "const stage=l=>l?'layer '+l:'embedding';",
    "function makeLens(){const table=by('lens'),top=make(table,'tr');make(top,'th','after the token');",
    "pieces.forEach((t,i)=>{const e=make(top,'td',t.trim());e.onclick=()=>choose(layer,head,i)});",
    "for(let l=nLayers;l>=0;l--){const row=make(table,'tr');make(row,'th',stage(l));lens[l].forEach((g,i)=>{",
    "const e=make(row,'td',g[0][0].trim()),p=g[0][1];e.style.background=gray(p);e.style.color=ink(p);",
    "if(i+1<n&&g[0][0]===pieces[i+1])e.className='hit';",
    "e.title=g.map(x=>x[1].toFixed(3)+' '+x[0]).join('\\n');",
    "e.onclick=()=>{choose(l>0?l-1:0,head,i);by('says').textContent='After '+name(i)+', '+stage(l)+' says: "
    "'+",
    "g.map(x=>x[0].trim()+' '+x[1].toFixed(3)).join(', ')+'.'}})}}",
    "function drawNorms(){const s=by('norms'),w=880,h=220,x0=50,y0=20,steps=norms.length;s.textContent='';",
    "let most=0;norms.forEach(r=>r.forEach(v=>{if(v>most)most=v}));",
    "const put=(tag,a,text)=>{const e=document.createElementNS('http://www.w3.org/2000/svg',tag);",
    "for(const k in a)e.setAttribute(k,a[k]);if(text!==undefined)e.textContent=text;s.appendChild(e)};",
    "const x=k=>x0+w*k/Math.max(1,steps-1),y=v=>y0+h-h*v/(most||1);",
    "put('line',{x1:x0,y1:y0+h,x2:x0+w,y2:y0+h,stroke:'#222'});put('line',{x1:x0,y1:y0,x2:x0,y2:y0+h,stroke:'"
    "#222'});",
    "[0,0.5,1].forEach(f=>put('text',{x:x0-6,y:y(f*most)+4,'text-anchor':'end'},(f*most).toPrecision(3)));",
    "for(let k=0;k<steps;k++)put('text',{x:x(k),y:y0+h+18,'text-anchor':'middle'},",
    "k?Math.ceil(k/2)+(k%2?'a':'f'):'E');",
    "const line=(i,c,d)=>put('polyline',{fill:'none',stroke:c,'stroke-width':d,points:norms.map((r,k)=>",
    "x(k).toFixed(1)+','+y(r[i]).toFixed(1)).join(' ')});",
    "for(let i=0;i<n;i++)if(i!==token)line(i,'#bbb',1);line(token,'#000',2.5)}",
    "function choose(l,h,t){const old=by('h'+layer+'_'+head);if(old)old.className='';layer=l;head=h;token=t;",
    "by('h'+l+'_'+h).className='on';drawText();drawHead();drawNorms();",
    "by('lens').querySelectorAll('tr').forEach(r=>Array.from(r.children).forEach((c,k)=>",
    "c.classList.toggle('on',k===t+1)))}",
    "by('model').textContent=model;makeHeads();makeLens();choose(nLayers>>1,0,n-1);</script></body></html>",
};

#endif
